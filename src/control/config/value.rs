//! The types of single values in a configuration file, and the rules that read them.
//!
//! A [`Rule`] turns one TOML value into a typed one or says what would have been allowed. [`Toml`] writes a typed value back.
//! Parse, don't validate: whoever holds one of these types need not check it again.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

/// Why a value, or one element of it, was not taken.
pub struct Refusal {
    /// Where inside the value: empty, or `[2]` for a list's third element.
    pub suffix: String,
    /// The place in the file.
    pub span: Range<usize>,
    /// What is allowed there.
    pub allowed: String,
}

/// Reads one TOML value.
pub trait Rule {
    /// What the value becomes.
    type Value;
    /// What may stand there, for people; follows the word "allowed".
    fn allowed(&self) -> String;
    /// None when the value is not allowed.
    fn accept(&self, value: &DeValue<'_>) -> Option<Self::Value>;
    /// The value, or each part of it that is not allowed.
    fn read(&self, value: &Spanned<DeValue<'_>>) -> Result<Self::Value, Vec<Refusal>> {
        self.accept(value.get_ref())
            .ok_or_else(|| vec![Refusal { suffix: String::new(), span: value.span(), allowed: self.allowed() }])
    }
}

/// Writes a value as TOML.
pub trait Toml {
    /// The TOML for this value.
    fn toml(&self) -> String;
}

macro_rules! toml_as_displayed {
    ($($type:ty)*) => { $(impl Toml for $type { fn toml(&self) -> String { self.to_string() } })* };
}
toml_as_displayed!(bool u8 u16 u32 u64);

macro_rules! toml_as_string {
    ($($type:ty)*) => { $(impl Toml for $type { fn toml(&self) -> String { quoted(&self.to_string()) } })* };
}
toml_as_string!(String IpAddr Ipv4Addr Ipv6Addr Cidr MacAddress Device);

impl Toml for PathBuf {
    fn toml(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl<T: Toml> Toml for Vec<T> {
    fn toml(&self) -> String {
        let all: Vec<String> = self.iter().map(Toml::toml).collect();
        format!("[{}]", all.join(", "))
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn text<'v>(value: &'v DeValue<'_>) -> Option<&'v str> {
    match value {
        DeValue::String(text) => Some(text),
        _ => None,
    }
}

/// `true` or `false`.
pub struct Bool;

impl Rule for Bool {
    type Value = bool;
    fn allowed(&self) -> String {
        "true or false".to_owned()
    }
    fn accept(&self, value: &DeValue<'_>) -> Option<bool> {
        value.as_bool()
    }
}

/// What a number must be besides lying in its range.
#[derive(Clone, Copy)]
enum Step {
    Any,
    MultipleOf(u64),
    PowerOfTwo,
}

/// A whole number in a range.
pub struct Number<T> {
    range: RangeInclusive<u64>,
    step: Step,
    to: PhantomData<T>,
}

/// Any whole number in `range`.
pub fn number<T: Into<u64> + Copy>(range: RangeInclusive<T>) -> Number<T> {
    let range = (*range.start()).into()..=(*range.end()).into();
    Number { range, step: Step::Any, to: PhantomData }
}

impl<T> Number<T> {
    /// Only multiples of `unit`.
    pub fn multiple_of(mut self, unit: u64) -> Self {
        self.step = Step::MultipleOf(unit);
        self
    }

    /// Only powers of two.
    pub fn power_of_two(mut self) -> Self {
        self.step = Step::PowerOfTwo;
        self
    }
}

impl<T: TryFrom<u64>> Rule for Number<T> {
    type Value = T;
    fn allowed(&self) -> String {
        let range = format!("{}..={}", self.range.start(), self.range.end());
        match self.step {
            Step::Any => range,
            Step::MultipleOf(unit) => format!("a multiple of {unit} in {range}"),
            Step::PowerOfTwo => format!("a power of two in {range}"),
        }
    }
    fn accept(&self, value: &DeValue<'_>) -> Option<T> {
        let DeValue::Integer(integer) = value else {
            return None;
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok()?;
        let fits = match self.step {
            Step::Any => true,
            Step::MultipleOf(unit) => number % unit == 0,
            Step::PowerOfTwo => number.is_power_of_two(),
        };
        (fits && self.range.contains(&number)).then(|| T::try_from(number).ok())?
    }
}

/// A list whose elements follow one rule.
pub struct List<R> {
    element: R,
    length: RangeInclusive<usize>,
}

/// A list of `length` elements.
pub fn list<R>(element: R, length: RangeInclusive<usize>) -> List<R> {
    List { element, length }
}

impl<R: Rule> Rule for List<R> {
    type Value = Vec<R::Value>;
    fn allowed(&self) -> String {
        let (least, most) = (self.length.start(), self.length.end());
        format!("a list of {least} to {most} elements, each {}", self.element.allowed())
    }
    fn accept(&self, _: &DeValue<'_>) -> Option<Self::Value> {
        None
    }
    fn read(&self, value: &Spanned<DeValue<'_>>) -> Result<Self::Value, Vec<Refusal>> {
        let array = match value.get_ref() {
            DeValue::Array(array) if self.length.contains(&array.len()) => array,
            _ => {
                return Err(vec![Refusal { suffix: String::new(), span: value.span(), allowed: self.allowed() }]);
            }
        };
        let mut good = Vec::with_capacity(array.len());
        let mut refusals = Vec::new();
        for (index, element) in array.iter().enumerate() {
            match self.element.read(element) {
                Ok(element) => good.push(element),
                Err(inner) => {
                    refusals.extend(inner.into_iter().map(|r| Refusal { suffix: format!("[{index}]{}", r.suffix), ..r }))
                }
            }
        }
        if refusals.is_empty() { Ok(good) } else { Err(refusals) }
    }
}

/// A type whose values are a few words.
pub trait Words: Sized + Copy + 'static {
    /// Every value with its word.
    const ALL: &'static [(Self, &'static str)];
}

/// One of a few words.
pub struct OneOf<T>(PhantomData<T>);

/// One of the words of `T`.
pub fn one_of<T: Words>() -> OneOf<T> {
    OneOf(PhantomData)
}

impl<T: Words> Rule for OneOf<T> {
    type Value = T;
    fn allowed(&self) -> String {
        let words: Vec<String> = T::ALL.iter().map(|(_, word)| format!("\"{word}\"")).collect();
        format!("one of {}", words.join(", "))
    }
    fn accept(&self, value: &DeValue<'_>) -> Option<T> {
        let found = text(value)?;
        T::ALL.iter().find(|(_, word)| *word == found).map(|(value, _)| *value)
    }
}

/// Declares an enum whose values are written as words in the file.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $( $(#[$variant_meta:meta])* $variant:ident = $word:literal ),+ $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $( $(#[$variant_meta])* $variant ),+ }

        impl $crate::control::config::value::Words for $name {
            const ALL: &'static [(Self, &'static str)] = &[$(($name::$variant, $word)),+];
        }

        impl $name {
            /// The word in the configuration file.
            pub fn word(self) -> &'static str {
                match self { $( $name::$variant => $word ),+ }
            }
        }

        impl $crate::control::config::value::Toml for $name {
            fn toml(&self) -> String {
                format!("\"{}\"", self.word())
            }
        }
    };
}
pub(super) use words;

/// A rule made of a text for people and a function from the string in the file.
pub struct Text<T> {
    allowed: &'static str,
    parse: fn(&str) -> Option<T>,
}

impl<T> Rule for Text<T> {
    type Value = T;
    fn allowed(&self) -> String {
        self.allowed.to_owned()
    }
    fn accept(&self, value: &DeValue<'_>) -> Option<T> {
        (self.parse)(text(value)?)
    }
}

/// A path in the host's file system.
pub fn path() -> Text<PathBuf> {
    Text { allowed: "a path without NUL, at most 4095 bytes", parse: parse_path }
}

fn parse_path(path: &str) -> Option<PathBuf> {
    // PATH_MAX of Linux counts the terminating NUL.
    const PATH_BYTES_MAX: usize = 4095;
    (!path.is_empty() && path.len() <= PATH_BYTES_MAX && !path.contains('\0')).then(|| PathBuf::from(path))
}

/// A path that a Unix socket can be bound to.
pub fn socket_path() -> Text<PathBuf> {
    // sockaddr_un.sun_path has 108 bytes with the NUL, and the socket is first bound under a longer, temporary name.
    Text {
        allowed: "a path without NUL, at most 96 bytes",
        parse: |path| parse_path(path).filter(|_| path.len() <= SOCKET_PATH_BYTES_MAX),
    }
}

/// Longest path of the stats socket, in bytes.
pub const SOCKET_PATH_BYTES_MAX: usize = 96;

/// The path under which clients mount an export: dirpath of RFC 1813 section 5.1.
pub fn export_name() -> Text<String> {
    Text {
        allowed: "a path such as \"/export\": begins with '/', no empty, \".\" or \"..\" part, no '/' at the end, at most 1024 bytes",
        parse: |name| {
            // MNTPATHLEN, RFC 1813 section 5.1.2.
            const EXPORT_NAME_BYTES_MAX: usize = 1024;
            let parts = name.strip_prefix('/')?;
            let whole = parts.is_empty()
                || parts.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains(char::is_control));
            (whole && name.len() <= EXPORT_NAME_BYTES_MAX).then(|| name.to_owned())
        },
    }
}

/// A network device: a PCI function, or a DPDK virtual device with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What kind of name `name` is.
    pub bus: Bus,
    /// `0000:03:00.0` with domain and lower-case digits, or `net_tap0`.
    pub name: String,
    /// What follows the first comma; empty when there is none.
    pub arguments: String,
}

/// Where EAL finds a device: `-a` or `--vdev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// A NIC bound to vfio-pci or uio_pci_generic.
    Pci,
    /// A device made of software.
    Vdev,
}

impl fmt::Display for Device {
    /// As EAL takes it after `-a` or `--vdev`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if !self.arguments.is_empty() {
            write!(f, ",{}", self.arguments)?;
        }
        Ok(())
    }
}

impl Device {
    /// What is one, for people.
    pub const ALLOWED: &str = "a PCI address such as \"0000:03:00.0\" or a DPDK vdev such as \"net_tap0,iface=nfs0\" (not net_af_xdp: it cannot send segmented packets)";

    /// `None` for what is not [`Device::ALLOWED`].
    pub fn parse(text: &str) -> Option<Self> {
        parse_device(text)
    }
}

/// A PCI address or a vdev string.
pub fn device() -> Text<Device> {
    Text { allowed: Device::ALLOWED, parse: parse_device }
}

fn parse_device(text: &str) -> Option<Device> {
    let (name, arguments) = text.split_once(',').unwrap_or((text, ""));
    if arguments.contains(char::is_whitespace) || (text.contains(',') && arguments.is_empty()) {
        return None;
    }
    let arguments = arguments.to_owned();
    if let Some(name) = parse_pci_address(name) {
        return Some(Device { bus: Bus::Pci, name, arguments });
    }
    let good = name
        .strip_prefix("net_")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
    // net_af_xdp of DPDK 22.11 copies the whole packet's length from its first segment: it would send what lies behind it.
    (good && !name.starts_with("net_af_xdp")).then(|| Device { bus: Bus::Vdev, name: name.to_owned(), arguments })
}

/// `[domain:]bus:device.function` in hexadecimal; the domain is 0000 when left out.
fn parse_pci_address(text: &str) -> Option<String> {
    let hex = |part: &str, digits: usize, max: u32| {
        let good = part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit());
        u32::from_str_radix(part, 16).ok().filter(|value| good && *value <= max)
    };
    let (front, function) = text.rsplit_once('.')?;
    let mut parts = front.rsplit(':');
    let device = hex(parts.next()?, 2, 0x1f)?;
    let bus = hex(parts.next()?, 2, 0xff)?;
    let domain = parts.next().map_or(Some(0), |domain| hex(domain, 4, 0xffff))?;
    let function = hex(function, 1, 7)?;
    parts.next().is_none().then(|| format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl MacAddress {
    /// `None` for what is not the address of one station.
    pub fn parse(text: &str) -> Option<Self> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
            *octet = u8::from_str_radix(part, 16).ok()?;
        }
        // The lowest bit of the first octet marks a group address (IEEE 802).
        let unicast = octets[0] & 1 == 0 && octets != [0; 6];
        (unicast && parts.next().is_none()).then_some(Self(octets))
    }
}

/// An Ethernet address that a station may have.
pub fn mac_address() -> Text<MacAddress> {
    Text { allowed: "a unicast Ethernet address such as \"02:00:00:00:00:01\"", parse: MacAddress::parse }
}

/// An address with the length of its network's prefix (RFC 4632 section 3.1): an interface's address, or a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// The address; for a network all host bits are zero.
    pub address: IpAddr,
    /// Leading bits that name the network.
    pub prefix_length: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

impl Cidr {
    /// None when the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix_length: u8) -> Option<Self> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix_length <= bits).then_some(Self { address, prefix_length })
    }

    /// The network this address lies in: all host bits zero.
    pub fn network(self) -> Self {
        Self { address: self.with_host_bits(false), ..self }
    }

    /// All host bits one: IPv4's directed broadcast address.
    pub fn last_address(self) -> IpAddr {
        self.with_host_bits(true)
    }

    /// Whether `address` lies in this network. An IPv4 address never lies in an IPv6 network, or the reverse.
    pub fn contains(self, address: IpAddr) -> bool {
        Self { address, ..self }.address.is_ipv4() == self.address.is_ipv4()
            && Self { address, ..self }.network().address == self.network().address
    }

    fn with_host_bits(self, ones: bool) -> IpAddr {
        let length = u32::from(self.prefix_length);
        match self.address {
            IpAddr::V4(address) => {
                let host = u32::MAX.checked_shr(length).unwrap_or(0);
                let network = address.to_bits() & !host;
                IpAddr::V4(Ipv4Addr::from_bits(if ones { network | host } else { network }))
            }
            IpAddr::V6(address) => {
                let host = u128::MAX.checked_shr(length).unwrap_or(0);
                let network = address.to_bits() & !host;
                IpAddr::V6(Ipv6Addr::from_bits(if ones { network | host } else { network }))
            }
        }
    }

    /// A prefix written as `address/length`; a lone address is a network of one.
    fn parse(text: &str) -> Option<Self> {
        let Some((address, length)) = text.split_once('/') else {
            let address: IpAddr = text.parse().ok()?;
            return Cidr::new(address, if address.is_ipv4() { 32 } else { 128 });
        };
        let plain = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
        Cidr::new(address.parse().ok()?, length.parse().ok().filter(|_| plain)?)
    }
}

/// The network of IPv6's link-local addresses (RFC 4291 section 2.5.6), which every port with IPv6 is in.
pub const LINK_LOCAL: Cidr = Cidr { address: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), prefix_length: 64 };

/// A port's own address.
pub fn interface_address() -> Text<Cidr> {
    Text {
        allowed: "a unicast address with its prefix length, such as \"10.77.0.2/24\" or \"fd4e:6673::2/64\"",
        parse: |text| {
            let cidr = Cidr::parse(text).filter(|_| text.contains('/'))?;
            (is_host_address(cidr.address) && cidr.prefix_length > 0).then_some(cidr)
        },
    }
}

/// A host's or router's address of either family.
pub fn host_address() -> Text<IpAddr> {
    Text {
        allowed: "a unicast address, such as \"10.77.0.1\" or \"fd4e:6673::1\"",
        parse: |text| text.parse().ok().filter(|address| is_host_address(*address)),
    }
}

/// A router's address.
pub fn gateway() -> Text<Ipv4Addr> {
    Text {
        allowed: "a unicast IPv4 address, such as \"10.77.0.1\"",
        parse: |text| text.parse().ok().filter(|address| is_host_address(IpAddr::V4(*address))),
    }
}

/// A router's address, often its link-local one.
pub fn gateway_ipv6() -> Text<Ipv6Addr> {
    Text {
        allowed: "a unicast IPv6 address, such as \"fe80::1\"",
        parse: |text| text.parse().ok().filter(|address| is_host_address(IpAddr::V6(*address))),
    }
}

/// Not unspecified, loopback, multicast, reserved or broadcast (RFC 1122 section 3.2.1.3), nor an IPv4 address written as IPv6
/// (RFC 4291 section 2.5.5).
fn is_host_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => (1..=223).contains(&address.octets()[0]) && !address.is_loopback(),
        IpAddr::V6(address) => {
            !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && address.to_ipv4_mapped().is_none()
        }
    }
}

/// Networks of clients: `"any"` stands for every address of both families.
pub struct ClientNetworks;

impl ClientNetworks {
    fn list() -> List<Text<Vec<Cidr>>> {
        let allowed = "a network without host bits such as \"10.0.0.0/8\", an address, or \"any\"";
        list(Text { allowed, parse: parse_client_network }, 1..=CLIENT_NETWORKS_MAX)
    }
}

impl Rule for ClientNetworks {
    type Value = Vec<Cidr>;
    fn allowed(&self) -> String {
        Self::list().allowed()
    }
    fn accept(&self, _: &DeValue<'_>) -> Option<Self::Value> {
        None
    }
    fn read(&self, value: &Spanned<DeValue<'_>>) -> Result<Self::Value, Vec<Refusal>> {
        Self::list().read(value).map(|networks| networks.concat())
    }
}

/// Most networks in one export's list of clients.
pub const CLIENT_NETWORKS_MAX: usize = 1024;

fn parse_client_network(text: &str) -> Option<Vec<Cidr>> {
    if text == "any" {
        return Some(vec![
            Cidr { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), prefix_length: 0 },
            Cidr { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), prefix_length: 0 },
        ]);
    }
    // Host bits in a network are a typing mistake more often than not, and the mistake would open an export too far.
    Cidr::parse(text).filter(|cidr| cidr.network() == *cidr).map(|cidr| vec![cidr])
}

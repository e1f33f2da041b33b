//! Packets of a TCP connection with the server, as a capture has them: tcpdump writes it, tshark takes it apart.
//! Not here: what is right and wrong about them (`judge`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::Inconclusive;
use crate::net::Netns;
use crate::process::{self, Daemon};
use crate::server::{SERVER_ADDRESS, SERVER_ADDRESS_V6};

pub const FIN: u16 = 0x01;
pub const SYN: u16 = 0x02;
pub const RST: u16 = 0x04;
pub const ACK: u16 = 0x10;
pub const ECE: u16 = 0x40;
pub const CWR: u16 = 0x80;

/// The codepoint of congestion experienced; 0 is a packet that cannot be marked.
pub const CE: u8 = 3;

/// Longer than the kernel keeps packets of a capture back before it hands them over (tcpdump asks for a second).
const CAPTURE_LAG: Duration = Duration::from_millis(1200);
const TSHARK_LIMIT: Duration = Duration::from_secs(300);

/// What tshark's expert says about a packet, as far as the judge asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expert {
    /// Of a retransmission, a fast or a spurious one.
    pub retransmission: bool,
    pub out_of_order: bool,
    /// "Previous segment(s) not captured".
    pub lost_segment: bool,
    /// "ACKed segment that wasn't captured".
    pub ack_of_lost: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Its number in the capture.
    pub frame: u32,
    /// Microseconds since 1970.
    pub at: u64,
    pub from_server: bool,
    pub server_port: u16,
    pub client_port: u16,
    pub seq: u32,
    pub ack: u32,
    /// Payload bytes.
    pub len: u32,
    pub flags: u16,
    /// As it stands in the header.
    pub window: u32,
    pub scale: Option<u8>,
    pub mss: Option<u16>,
    pub sack_permitted: bool,
    /// A D-SACK is the first.
    pub sack: Vec<(u32, u32)>,
    /// Value and echo.
    pub timestamps: Option<(u32, u32)>,
    pub ecn: u8,
    /// Bytes of the IP packet.
    pub ip_len: u32,
    /// Of IP or TCP.
    pub bad_checksum: bool,
    pub expert: Expert,
}

impl Packet {
    pub fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// Sequence space.
    pub fn space(&self) -> u32 {
        self.len + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }

    /// What stays the same on the way: all but marks.
    pub fn identity(&self) -> Identity {
        (self.from_server, self.seq, self.ack, self.len, self.flags, self.window, self.timestamps, self.sack.clone())
    }
}

pub type Identity = (bool, u32, u32, u32, u16, u32, Option<(u32, u32)>, Vec<(u32, u32)>);

/// A running tcpdump.
pub struct Capture {
    tcpdump: Daemon,
    path: PathBuf,
}

impl Capture {
    /// The first `snaplen` bytes of each TCP packet on `device`; 0: all of it.
    pub fn start(net: &Netns, device: &str, path: &Path, snaplen: u32) -> Result<Capture> {
        let snaplen = snaplen.to_string();
        let mut command = net.command("tcpdump");
        // 64 MiB between the kernel and tcpdump; tcpdump stays root, which the folder belongs to.
        command.args(["-i", device, "-s", &snaplen, "-B", "65536", "-Z", "root", "-n", "-w"]).arg(path);
        command.arg(format!("tcp and (host {SERVER_ADDRESS} or host {SERVER_ADDRESS_V6})"));
        let mut tcpdump = Daemon::spawn(command, &path.with_extension("log"))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(&tcpdump.log)?.contains("listening on") {
            if tcpdump.exited()?.is_some() || Instant::now() > deadline {
                bail!(Inconclusive::Captures(format!("tcpdump does not listen\n{}", tcpdump.tail())));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Capture { tcpdump, path: path.to_owned() })
    }

    /// Waits for what is under way to tcpdump. Of several captures, call it once.
    pub fn settle() {
        thread::sleep(CAPTURE_LAG);
    }

    /// Ends the capture, which has to be complete, and reads it.
    pub fn finish(self) -> Result<Vec<Packet>> {
        self.end().map_err(|error| Inconclusive::Captures(format!("{error:#}")).into())
    }

    fn end(mut self) -> Result<Vec<Packet>> {
        self.tcpdump.signal(Signal::INT);
        self.tcpdump.wait(Duration::from_secs(20))?;
        let said = fs::read_to_string(&self.tcpdump.log)?;
        ensure!(said.contains("\n0 packets dropped by kernel"), "the capture has holes: {said}");
        read(&self.path)
    }
}

const FIELDS: &[&str] = &[
    "frame.number",
    "frame.time_epoch",
    "ip.src",
    "ipv6.src",
    "tcp.srcport",
    "tcp.dstport",
    "tcp.seq_raw",
    "tcp.ack_raw",
    "tcp.len",
    "tcp.flags",
    "tcp.window_size_value",
    "tcp.options.wscale.shift",
    "tcp.options.mss_val",
    "tcp.options.sack_perm",
    "tcp.options.sack_le",
    "tcp.options.sack_re",
    "tcp.options.timestamp.tsval",
    "tcp.options.timestamp.tsecr",
    "ip.dsfield.ecn",
    "ipv6.tclass.ecn",
    "ip.len",
    "ipv6.plen",
    "ip.checksum.status",
    "tcp.checksum.status",
    "tcp.checksum",
    "tcp.checksum_calculated",
    "tcp.analysis.retransmission",
    "tcp.analysis.fast_retransmission",
    "tcp.analysis.spurious_retransmission",
    "tcp.analysis.out_of_order",
    "tcp.analysis.lost_segment",
    "tcp.analysis.ack_lost_segment",
];

fn read(path: &Path) -> Result<Vec<Packet>> {
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(path).args(["-n", "-T", "fields", "-E", "separator=/t", "-E", "occurrence=a", "-E", "aggregator=,"]);
    // What is inside the stream is not looked at here.
    tshark.args(["--disable-protocol", "rpc", "-o", "tcp.desegment_tcp_streams:FALSE"]);
    tshark.args(["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-o", "tcp.relative_sequence_numbers:FALSE"]);
    for field in FIELDS {
        tshark.args(["-e", field]);
    }
    let text = process::run(tshark, TSHARK_LIMIT)?.text();
    text.lines().map(|line| parse(line).with_context(|| format!("tshark printed {line:?}"))).collect()
}

fn parse(line: &str) -> Result<Packet> {
    let fields: Vec<&str> = line.split('\t').collect();
    ensure!(fields.len() == FIELDS.len(), "{} fields", fields.len());
    let field = |name: &str| fields[FIELDS.iter().position(|field| *field == name).expect("a field that was asked for")];
    let number = |name: &str| field(name).parse::<u32>().with_context(|| format!("{name} is {:?}", field(name)));
    let port = |name: &str| field(name).parse::<u16>().with_context(|| format!("{name} is {:?}", field(name)));
    let given = |name: &str| !field(name).is_empty();
    let pairs = |left: &str, right: &str| -> Result<Vec<(u32, u32)>> {
        let list = |name: &str| -> Result<Vec<u32>> {
            field(name).split(',').filter(|part| !part.is_empty()).map(|part| Ok(part.parse()?)).collect()
        };
        let (left, right) = (list(left)?, list(right)?);
        ensure!(left.len() == right.len(), "half a block");
        Ok(left.into_iter().zip(right).collect())
    };
    let ipv6 = given("ipv6.src");
    let from_server = if ipv6 { field("ipv6.src") == SERVER_ADDRESS_V6 } else { field("ip.src") == SERVER_ADDRESS };
    let (seconds, fraction) = field("frame.time_epoch").split_once('.').context("a time")?;
    let micros = fraction.get(..6).context("microseconds")?;
    let both_zeros = (field("tcp.checksum"), field("tcp.checksum_calculated")) == ("0xffff", "0x0000");
    let (source, destination) = (port("tcp.srcport")?, port("tcp.dstport")?);
    Ok(Packet {
        frame: number("frame.number")?,
        at: seconds.parse::<u64>()? * 1_000_000 + micros.parse::<u64>()?,
        from_server,
        server_port: if from_server { source } else { destination },
        client_port: if from_server { destination } else { source },
        seq: number("tcp.seq_raw")?,
        ack: number("tcp.ack_raw")?,
        len: number("tcp.len")?,
        flags: u16::from_str_radix(field("tcp.flags").trim_start_matches("0x"), 16)?,
        window: number("tcp.window_size_value")?,
        scale: given("tcp.options.wscale.shift")
            .then(|| number("tcp.options.wscale.shift"))
            .transpose()?
            .map(|scale| scale as u8),
        mss: given("tcp.options.mss_val").then(|| port("tcp.options.mss_val")).transpose()?,
        sack_permitted: given("tcp.options.sack_perm"),
        sack: pairs("tcp.options.sack_le", "tcp.options.sack_re")?,
        timestamps: match given("tcp.options.timestamp.tsval") {
            true => Some((number("tcp.options.timestamp.tsval")?, number("tcp.options.timestamp.tsecr")?)),
            false => None,
        },
        ecn: number(if ipv6 { "ipv6.tclass.ecn" } else { "ip.dsfield.ecn" })? as u8,
        // RFC 8200 section 3: what follows the header of 40 bytes.
        ip_len: if ipv6 { 40 + number("ipv6.plen")? } else { number("ip.len")? },
        // 0 is tshark's word for bad, 2 for "not looked at", as in a capture of headers. It calls 0xffff for 0 bad, too, which is the same
        // in ones' complement, and what both the kernel and DPDK send (RFC 1624 section 3).
        bad_checksum: field("ip.checksum.status") == "0" || (field("tcp.checksum.status") == "0" && !both_zeros),
        expert: Expert {
            retransmission: ["retransmission", "fast_retransmission", "spurious_retransmission"]
                .iter()
                .any(|kind| given(&format!("tcp.analysis.{kind}"))),
            out_of_order: given("tcp.analysis.out_of_order"),
            lost_segment: given("tcp.analysis.lost_segment"),
            ack_of_lost: given("tcp.analysis.ack_lost_segment"),
        },
    })
}

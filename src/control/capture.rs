//! `nfsplice capture`: frames of a port of the running server, as pcapng, through the stats socket into a file.
//!
//! Read first: draft-ietf-opsawg-pcapng sections 4.1 (section header), 4.2 (interface description), 4.3 (enhanced packet), 4.6
//! (interface statistics): the four blocks written here. The cores put copies into a bounded ring and never wait; a thread of
//! the control plane writes them to whoever asked, and tells at the end how many found no room. One capture runs at a time.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::inquiry::{Capture, CapturedFrame, CapturedFrames, Inquiries, Inquiry};

/// Bytes and frames that the ring may hold.
const RING_BYTES_MAX: usize = 32 << 20;
const RING_FRAMES_MAX: usize = 16_384;
/// How long the writer sleeps when the ring is empty.
const POLL: Duration = Duration::from_millis(5);
/// How long who captures may take nothing, as a stopped process or a hanging disk does, before the capture is over.
pub const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long the cores may take to hear that a capture is over: they look every 100 ms.
const OVER_MAX: Duration = Duration::from_secs(1);
/// Longest block that a client takes, bytes.
const BLOCK_BYTES_MAX: usize = 1 << 20;

/// Largest `snaplen`, bytes: the longest chain that a card cuts, and what other tools take.
pub const SNAPLEN_MAX: u32 = 262_144;
/// Longest capture, seconds.
pub const SECONDS_MAX: u32 = 86_400;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;

/// What is to be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The port's device, or its number.
    pub port: String,
    pub seconds: u32,
    /// Bytes of each frame.
    pub snaplen: u32,
    /// Only TCP and UDP with this port on either side.
    pub transport_port: Option<u16>,
}

impl Wanted {
    /// As it goes through the socket.
    pub fn request(&self) -> String {
        let Wanted { port, seconds, snaplen, transport_port } = self;
        format!("capture {port} {seconds} {snaplen} {}\n", transport_port.unwrap_or(0))
    }

    /// The other way.
    pub fn parse(request: &str) -> Option<Wanted> {
        let mut words = request.strip_prefix("capture ")?.trim_end().split(' ');
        let wanted = Wanted {
            port: words.next()?.to_owned(),
            seconds: words.next()?.parse().ok().filter(|seconds| (1..=SECONDS_MAX).contains(seconds))?,
            snaplen: words.next()?.parse().ok().filter(|snaplen| (1..=SNAPLEN_MAX).contains(snaplen))?,
            transport_port: Some(words.next()?.parse().ok()?).filter(|port| *port != 0),
        };
        words.next().is_none().then_some(wanted)
    }
}

/// Lets the cores know that a capture is over, however it ends.
struct Running(Capture);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// The other end of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    Listens,
    /// Wants no more frames, but how it ended.
    HasEnough,
    Gone,
}

/// The server's side: asks the cores and writes what they see to `out`, until the time is over, `stop` is set or nobody reads.
/// `listens`: what whoever asked wants, which a write would not tell as long as there is nothing to write.
pub fn serve(
    out: &mut dyn Write,
    listens: &dyn Fn() -> Listener,
    wanted: &Wanted,
    inquiries: &Inquiries,
    stop: &AtomicBool,
) -> io::Result<()> {
    let by_name = inquiries.ports.iter().position(|name| *name == wanted.port);
    let by_number = wanted.port.parse().ok().filter(|number| *number < inquiries.ports.len());
    let Some(port) = by_name.or(by_number) else {
        return writeln!(out, "no port {}; there are {}", wanted.port, inquiries.ports.join(", "));
    };
    let snaplen = wanted.snaplen as usize;
    let running = Running(Capture {
        port,
        snaplen,
        transport_port: wanted.transport_port,
        frames: Arc::new(CapturedFrames::new(RING_FRAMES_MAX, RING_BYTES_MAX)),
        over: Arc::new(AtomicBool::new(false)),
    });
    if !inquiries.ask(&Inquiry::Capture(running.0.clone())) {
        return writeln!(out, "the cores do not answer");
    }
    out.write_all(&section_header())?;
    out.write_all(&interface_description(&inquiries.ports[port], wanted.snaplen))?;
    out.flush()?;
    let end = Instant::now() + Duration::from_secs(wanted.seconds.into());
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        let written = write_frames(out, &running.0.frames)?;
        match listens() {
            Listener::Listens => {}
            Listener::HasEnough => break,
            Listener::Gone => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        if written == 0 {
            std::thread::sleep(POLL);
        }
    }
    running.0.over.store(true, Ordering::Relaxed);
    // The ring is this thread's alone when the last core has let go of it.
    let patience = Instant::now() + OVER_MAX;
    while Arc::strong_count(&running.0.frames) > 1 && Instant::now() < patience {
        std::thread::sleep(POLL);
    }
    write_frames(out, &running.0.frames)?;
    out.write_all(&interface_statistics(running.0.frames.dropped()))?;
    out.flush()
}

/// What waits; how many frames.
fn write_frames(out: &mut dyn Write, frames: &CapturedFrames) -> io::Result<usize> {
    let mut written = 0;
    // What comes meanwhile is for the next time.
    for _ in 0..frames.waiting() {
        let Some(frame) = frames.pop() else { break };
        out.write_all(&enhanced_packet(&frame))?;
        written += 1;
    }
    out.flush()?;
    Ok(written)
}

/// A block: type, length, body padded to words, length.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let len = (body.len().next_multiple_of(4) + 12) as u32;
    let mut block = Vec::with_capacity(len as usize);
    block.extend(kind.to_le_bytes());
    block.extend(len.to_le_bytes());
    block.extend(body);
    block.resize(len as usize - 4, 0);
    block.extend(len.to_le_bytes());
    block
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn section_header() -> Vec<u8> {
    let mut body = BYTE_ORDER_MAGIC.to_le_bytes().to_vec();
    // Version 1.0; the section's length is not known.
    body.extend(1u16.to_le_bytes());
    body.extend(0u16.to_le_bytes());
    body.extend(u64::MAX.to_le_bytes());
    option(&mut body, 4, concat!("nfsplice ", env!("CARGO_PKG_VERSION")).as_bytes());
    option(&mut body, 0, &[]);
    block(SECTION_HEADER, &body)
}

fn interface_description(name: &str, snaplen: u32) -> Vec<u8> {
    let mut body = LINKTYPE_ETHERNET.to_le_bytes().to_vec();
    body.extend(0u16.to_le_bytes());
    body.extend(snaplen.to_le_bytes());
    option(&mut body, 2, name.as_bytes());
    // if_tsresol: 10^-9 s.
    option(&mut body, 9, &[9]);
    option(&mut body, 0, &[]);
    block(INTERFACE_DESCRIPTION, &body)
}

fn timestamp(body: &mut Vec<u8>, at_ns: u64) {
    body.extend(((at_ns >> 32) as u32).to_le_bytes());
    body.extend((at_ns as u32).to_le_bytes());
}

fn enhanced_packet(frame: &CapturedFrame) -> Vec<u8> {
    let mut body = 0u32.to_le_bytes().to_vec();
    timestamp(&mut body, frame.at_ns);
    body.extend((frame.bytes.len() as u32).to_le_bytes());
    body.extend(frame.original_len.to_le_bytes());
    body.extend(&frame.bytes);
    body.resize(body.len().next_multiple_of(4), 0);
    // epb_flags: 1 is inbound, 2 is outbound.
    option(&mut body, 2, &if frame.outgoing { 2u32 } else { 1 }.to_le_bytes());
    option(&mut body, 1, format!("core {}", frame.core).as_bytes());
    option(&mut body, 0, &[]);
    block(ENHANCED_PACKET, &body)
}

fn interface_statistics(dropped: u64) -> Vec<u8> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut body = 0u32.to_le_bytes().to_vec();
    timestamp(&mut body, now.as_nanos() as u64);
    // isb_ifdrop.
    option(&mut body, 5, &dropped.to_le_bytes());
    option(&mut body, 0, &[]);
    block(INTERFACE_STATISTICS, &body)
}

/// What a file got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    pub frames: u64,
    /// For which the server had no room.
    pub dropped: u64,
}

/// The client's side: what the server sends, into `file`.
pub fn save(server: &mut dyn Read, file: &Path) -> anyhow::Result<Captured> {
    let mut captured = Captured::default();
    let mut out = None;
    let mut block = vec![0; 8];
    let mut ended = false;
    loop {
        block.resize(8, 0);
        match read_all(server, &mut block)? {
            0 => break,
            8 if out.is_some() || block.starts_with(&SECTION_HEADER.to_le_bytes()) => {}
            some => {
                // Not a block: the server's reason.
                block.truncate(some);
                (&mut *server).take(4096).read_to_end(&mut block)?;
                bail!("the server says: {}", String::from_utf8_lossy(&block).trim_end());
            }
        }
        let word = |at: usize, block: &[u8]| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        let (kind, len) = (word(0, &block), word(4, &block) as usize);
        if !(12..=BLOCK_BYTES_MAX).contains(&len) || len % 4 != 0 {
            bail!("the server sent a block of {len} bytes");
        }
        block.resize(len, 0);
        if read_all(server, &mut block[8..])? != len - 8 {
            bail!("the server ended in the middle of a block{}", what_is_left(out.is_some(), file));
        }
        if out.is_none() {
            out = Some(io::BufWriter::new(
                std::fs::File::create(file).with_context(|| format!("cannot write {}", file.display()))?,
            ));
        }
        if let Some(out) = &mut out {
            out.write_all(&block).with_context(|| format!("cannot write {}", file.display()))?;
        }
        captured.frames += u64::from(kind == ENHANCED_PACKET);
        if kind == INTERFACE_STATISTICS && len >= 40 {
            captured.dropped = u64::from(word(24, &block)) | u64::from(word(28, &block)) << 32;
            ended = true;
        }
    }
    let begun = out.is_some();
    if let Some(mut out) = out {
        out.flush().with_context(|| format!("cannot write {}", file.display()))?;
    }
    if !ended {
        bail!("the server ended before the capture did{}", what_is_left(begun, file));
    }
    Ok(captured)
}

fn what_is_left(begun: bool, file: &Path) -> String {
    if begun { format!("; {} holds what came before", file.display()) } else { String::new() }
}

/// Fills `into`, or as much of it as comes before the end.
fn read_all(from: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match from.read(&mut into[done..]) {
            Ok(0) => break,
            Ok(more) => done += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn frame(outgoing: bool, number: u8) -> CapturedFrame {
        // An ARP request, cut in the middle.
        let mut bytes = vec![0xff; 6];
        bytes.extend([2, 0, 0, 0, 0, number, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        CapturedFrame { at_ns: 1_700_000_000_123_456_789 + u64::from(number), outgoing, core: 1, original_len: 60, bytes }
    }

    fn temporary(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("nfsplice-capture-{name}-{}.pcapng", std::process::id()))
    }

    fn stream() -> Vec<u8> {
        let mut stream = [section_header(), interface_description("net_tap0", 22)].concat();
        for number in 1..=3 {
            stream.extend(enhanced_packet(&frame(number == 2, number)));
        }
        stream.extend(interface_statistics(77));
        stream
    }

    #[test]
    fn a_request_reads_back_and_nonsense_does_not() {
        let wanted = Wanted { port: "0000:03:00.0".into(), seconds: 60, snaplen: 128, transport_port: Some(2049) };
        assert_eq!(Wanted::parse(&wanted.request()), Some(wanted.clone()));
        let all = Wanted { transport_port: None, ..wanted };
        assert_eq!(Wanted::parse(&all.request()), Some(all));
        for bad in ["capture", "capture 0", "capture 0 0 128 0", "capture 0 1 0 0", "capture 0 1 128 0 0", "capture 0 1 999999 0"]
        {
            assert_eq!(Wanted::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn tshark_reads_what_is_written() {
        let file = temporary("tshark");
        let captured = save(&mut stream().as_slice(), &file).unwrap();
        assert_eq!(captured, Captured { frames: 3, dropped: 77 });
        let fields =
            ["frame.time_epoch", "frame.len", "frame.cap_len", "frame.interface_name", "frame.packet_flags_direction", "eth.src"];
        let mut tshark = Command::new("tshark");
        tshark.args(["-r", file.to_str().unwrap(), "-T", "fields"]);
        tshark.args(fields.iter().flat_map(|field| ["-e", field]));
        let output = tshark.output();
        std::fs::remove_file(&file).unwrap();
        let Ok(output) = output else { return println!("skipped: no tshark") };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
        assert_eq!(rows.len(), 3, "{text}");
        assert_eq!(&rows[1][..4], ["1700000000.123456791", "60", "22", "net_tap0"], "{text}");
        assert!(rows[1][4].ends_with('2') && rows[0][4].ends_with('1'), "directions: {text}");
        assert_eq!(rows[2][5], "02:00:00:00:00:03");
    }

    #[test]
    fn a_stream_that_ends_early_is_an_error_and_a_reason_is_told() {
        let file = temporary("early");
        let stream = stream();
        assert!(save(&mut &stream[..stream.len() - 60], &file).is_err(), "no statistics");
        assert!(save(&mut &stream[..100], &file).is_err(), "half a block");
        std::fs::remove_file(&file).unwrap();
        let error = save(&mut b"no port eth0; there are net_tap0\n".as_slice(), &file).unwrap_err();
        assert_eq!(error.to_string(), "the server says: no port eth0; there are net_tap0");
        assert!(!file.exists());
    }

    #[test]
    fn a_capture_ends_with_its_time_and_counts_what_found_no_room() {
        let (inquiries, mailboxes) = Inquiries::new(1, vec!["net_tap0".into()]);
        let wanted = Wanted { port: "0".into(), seconds: 1, snaplen: SNAPLEN_MAX, transport_port: None };
        let sent = RING_FRAMES_MAX as u64 + 100;
        let core = std::thread::spawn(move || {
            let Ok(Inquiry::Capture(capture)) = mailboxes[0].recv() else { panic!("no capture") };
            // More than the ring holds, faster than anybody writes.
            for number in 0..sent {
                capture.frames.push(frame(false, number as u8));
            }
            while !capture.over.load(Ordering::Relaxed) {
                std::thread::sleep(POLL);
            }
        });
        let mut out = Vec::new();
        serve(&mut out, &|| Listener::Listens, &wanted, &inquiries, &AtomicBool::new(false)).unwrap();
        core.join().unwrap();
        let file = temporary("full");
        let captured = save(&mut out.as_slice(), &file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(captured.frames + captured.dropped, sent);
        let mut out = Vec::new();
        serve(&mut out, &|| Listener::Listens, &Wanted { port: "7".into(), ..wanted }, &inquiries, &AtomicBool::new(false))
            .unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "no port 7; there are net_tap0\n");
    }
}

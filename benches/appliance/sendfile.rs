//! A bare kernel sendfile loop and its client: what the kernel's own splice path costs for the same bytes, without RPC or NFS.
//!
//! One thread answers all connections: for each request of 16 bytes (length, offset) it sends a marker and a head of a READ
//! reply's length with MSG_MORE, then the bytes with sendfile(2). A request for no bytes is answered with an echo of 4 bytes: what a
//! NULL call would cost. The client keeps a number of requests outstanding on each connection, and can check every byte.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Record mark, RPC reply header, status, attributes, count, eof and length of the data (RFC 5531 section 9, RFC 1813 section 3.3.6).
const HEAD_BYTES: usize = 4 + 24 + 4 + 88 + 4 + 4 + 4;
const ECHO_BYTES: usize = 4;
const REQUEST_BYTES: usize = 16;
/// Requests taken from a connection at once.
const REQUESTS_MAX: usize = 64;

/// What the client wants.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub connections: usize,
    pub depth: usize,
    /// Bytes of a READ; 0 for the echo.
    pub bytes: u32,
    pub working_set: u64,
    pub ramp: Duration,
    pub duration: Duration,
    pub verify: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub operations: u64,
    pub seconds: f64,
    pub latency_p50_ns: u64,
    pub latency_p99_ns: u64,
}

/// The file's content: each aligned word of 8 bytes is its own offset, mixed so that no two pages look alike.
fn word_at(offset: u64) -> u64 {
    (offset / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) ^ offset
}

/// Makes the file, unless it is there with its size.
pub fn prepare(path: &Path, bytes: u64) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() == bytes) {
        // Into the page cache, if it has been pushed out.
        std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
        return Ok(());
    }
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for offset in (0..bytes).step_by(8) {
        file.write_all(&word_at(offset).to_ne_bytes())?;
    }
    file.flush().with_context(|| format!("writing {}", path.display()))
}

/// Serves until killed. Prints its port when it is ready.
pub fn serve(path: &Path, cpu: usize) -> Result<()> {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    let mut connections: Vec<TcpStream> = Vec::new();
    loop {
        let ready: Vec<usize> = {
            let mut descriptors = vec![PollFd::new(&listener, PollFlags::IN)];
            descriptors.extend(connections.iter().map(|connection| PollFd::new(connection, PollFlags::IN)));
            poll(&mut descriptors, None)?;
            (0..descriptors.len()).filter(|&at| !descriptors[at].revents().is_empty()).collect()
        };
        for at in ready.into_iter().rev() {
            if at == 0 {
                let (connection, _) = listener.accept()?;
                connection.set_nodelay(true)?;
                connections.push(connection);
            } else if !answer(&connections[at - 1], &file).unwrap_or(false) {
                connections.swap_remove(at - 1);
            }
        }
    }
}

/// Answers what has arrived on one connection. False when it has ended.
fn answer(connection: &TcpStream, file: &File) -> Result<bool> {
    let mut requests = [0; REQUESTS_MAX * REQUEST_BYTES];
    let mut taken = recv(connection, &mut requests[..], RecvFlags::empty())?.0;
    if taken == 0 {
        return Ok(false);
    }
    while taken % REQUEST_BYTES != 0 {
        taken += recv(connection, &mut requests[taken..], RecvFlags::empty())?.0;
    }
    for request in requests[..taken].chunks_exact(REQUEST_BYTES) {
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| request[at + byte]));
        let (bytes, mut offset) = (word(0), word(8));
        if bytes == 0 {
            send(connection, &request[..ECHO_BYTES], SendFlags::NOSIGNAL)?;
            continue;
        }
        send(connection, &[0x80; HEAD_BYTES], SendFlags::MORE | SendFlags::NOSIGNAL)?;
        let end = offset + bytes;
        while offset < end {
            let left = (end - offset) as usize;
            if rustix::fs::sendfile(connection, file, Some(&mut offset), left)? == 0 {
                bail!("the file ends at {offset}");
            }
        }
    }
    Ok(true)
}

/// One connection's requests on their way, oldest first.
struct Stream {
    socket: TcpStream,
    sent: std::collections::VecDeque<(Instant, u64)>,
    /// Bytes of the oldest one's reply that have come.
    received: usize,
}

struct Client {
    plan: Plan,
    random: u64,
    buffer: Vec<u8>,
    latencies_ns: Vec<u64>,
}

impl Client {
    fn next_offset(&mut self) -> u64 {
        // xorshift64*: enough to spread reads over the working set.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let places = self.plan.working_set / u64::from(self.plan.bytes.max(1));
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % places.max(1) * u64::from(self.plan.bytes)
    }

    fn request(&mut self, stream: &mut Stream) -> Result<()> {
        let offset = self.next_offset();
        let mut request = [0; REQUEST_BYTES];
        request[..8].copy_from_slice(&u64::from(self.plan.bytes).to_ne_bytes());
        request[8..].copy_from_slice(&offset.to_ne_bytes());
        stream.sent.push_back((Instant::now(), offset));
        Ok(stream.socket.write_all(&request)?)
    }

    /// Takes what has come on one connection; asks anew for each reply that is complete.
    fn take(&mut self, stream: &mut Stream) -> Result<()> {
        let reply_bytes = if self.plan.bytes == 0 { ECHO_BYTES } else { HEAD_BYTES + self.plan.bytes as usize };
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut come = stream.socket.read(&mut buffer)?;
        if come == 0 {
            bail!("the sendfile loop has closed the connection");
        }
        let mut at = 0;
        while come > 0 {
            let &(started, offset) = stream.sent.front().context("bytes that nobody asked for")?;
            let step = come.min(reply_bytes - stream.received);
            if self.plan.verify {
                check(&buffer[at..at + step], stream.received, offset)?;
            }
            stream.received += step;
            at += step;
            come -= step;
            if stream.received == reply_bytes {
                self.latencies_ns.push(started.elapsed().as_nanos() as u64);
                stream.sent.pop_front();
                stream.received = 0;
                self.request(stream)?;
            }
        }
        self.buffer = buffer;
        Ok(())
    }
}

/// `part` is what a reply for `offset` has from its byte `received` on.
fn check(part: &[u8], received: usize, offset: u64) -> Result<()> {
    for (at, byte) in part.iter().enumerate() {
        let Some(data) = (received + at).checked_sub(HEAD_BYTES) else { continue };
        let place = offset + data as u64;
        if word_at(place & !7).to_ne_bytes()[(place & 7) as usize] != *byte {
            bail!("the sendfile loop sent a wrong byte for offset {place}");
        }
    }
    Ok(())
}

/// Drives the loop at `port` from this thread, which is pinned to `cpu`.
pub fn drive(port: u16, cpu: usize, plan: Plan) -> Result<Outcome> {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
    let mut client = Client { plan, random: 0x1234_5678_9abc_def1, buffer: vec![0; 1 << 20], latencies_ns: Vec::new() };
    let mut streams = Vec::new();
    for _ in 0..plan.connections {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_nodelay(true)?;
        streams.push(Stream { socket, sent: std::collections::VecDeque::new(), received: 0 });
    }
    for stream in &mut streams {
        for _ in 0..plan.depth {
            client.request(stream)?;
        }
    }
    let begin = Instant::now() + plan.ramp;
    let mut measuring = false;
    loop {
        let now = Instant::now();
        if !measuring && now >= begin {
            measuring = true;
            client.latencies_ns.clear();
        }
        if now >= begin + plan.duration {
            break;
        }
        let ready: Vec<usize> = {
            let mut descriptors: Vec<PollFd<'_>> =
                streams.iter().map(|stream| PollFd::from_borrowed_fd(stream.socket.as_fd(), PollFlags::IN)).collect();
            poll(&mut descriptors, None)?;
            (0..descriptors.len()).filter(|&at| !descriptors[at].revents().is_empty()).collect()
        };
        for at in ready {
            client.take(&mut streams[at])?;
        }
    }
    let mut latencies = client.latencies_ns;
    latencies.sort_unstable();
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or(0);
    Ok(Outcome {
        operations: latencies.len() as u64,
        seconds: plan.duration.as_secs_f64(),
        latency_p50_ns: at(0.5),
        latency_p99_ns: at(0.99),
    })
}

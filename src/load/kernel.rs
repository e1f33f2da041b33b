//! The kernel's TCP sockets as a transport: non-blocking, one epoll instance a core.
//!
//! A turn reads what epoll says is readable, and writes with one writev per connection that has something to send. Received bytes go
//! into fragments, front to back: small replies do not pin whole blocks. An idle core sleeps in epoll, because the server
//! may need the CPU.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::{Timespec, epoll};

use super::transport::{Figure, StreamEvent, StreamKey, Transport, TransportError, append_figures};
use crate::buf::{FragmentArena, PagePool, RxBuf, RxChain, Slice};
use crate::time::Instant;

/// Bytes of a block that received bytes go to, and of one read at most.
const READ_BLOCK: usize = 1 << 20;
const READ_MIN: usize = 64 << 10;
/// Blocks for received bytes besides one per connection.
const READ_BLOCKS: usize = 64;
/// Pieces of one writev: IOV_MAX of Linux.
const PIECES_MAX: usize = 1024;
/// Events taken from epoll at once.
const EVENTS: usize = 256;
/// Reads of one connection in one turn, so that none keeps the others waiting.
const READS_PER_TURN: usize = 16;

crate::counters! {
    /// What the sockets cost.
    pub struct KernelCounters {
        /// Calls of read that returned bytes.
        reads,
        /// Bytes of these.
        read_bytes,
        /// Calls of writev that took bytes.
        writes,
        /// Bytes of these.
        written_bytes,
        /// Times the kernel's send buffer was full.
        send_buffer_full,
    }
}

struct Socket {
    stream: TcpStream,
    chain: RxChain,
    out: VecDeque<Slice>,
    connected: bool,
    /// The peer sends no more than what is there.
    ending: bool,
    closed: bool,
    dirty: bool,
}

/// Sockets of one core.
pub struct KernelTransport {
    epoll: OwnedFd,
    origin: std::time::Instant,
    sockets: Vec<Socket>,
    events: VecDeque<StreamEvent>,
    /// Sockets with something to write.
    dirty: Vec<u32>,
    /// Sockets that may have more to read than was read.
    unread: Vec<u32>,
    arena: FragmentArena,
    pools: (PagePool, PagePool),
    counters: KernelCounters,
}

impl KernelTransport {
    /// `origin`: instant zero.
    pub fn new(origin: std::time::Instant, connections: usize, pools: (PagePool, PagePool)) -> io::Result<KernelTransport> {
        let short = || io::Error::from(io::ErrorKind::OutOfMemory);
        let blocks = PagePool::anonymous(READ_BLOCKS + connections, READ_BLOCK).ok_or_else(short)?;
        Ok(KernelTransport {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            origin,
            sockets: Vec::new(),
            events: VecDeque::new(),
            dirty: Vec::new(),
            unread: Vec::new(),
            arena: FragmentArena::new(blocks).ok_or_else(short)?,
            pools,
            counters: KernelCounters::default(),
        })
    }

    /// Memory for calls and for file data.
    pub fn pools_for(connections: usize, depth: usize) -> Option<(PagePool, PagePool)> {
        let calls = PagePool::anonymous(64 + connections * (1 + depth / 64), 256 << 10)?;
        Some((calls, PagePool::anonymous(1, super::pattern::Pattern::BLOCK)?))
    }

    /// Begins to connect stream `number`.
    fn open(&self, number: u32, remote: SocketAddr) -> io::Result<Socket> {
        let family = if remote.is_ipv4() { rustix::net::AddressFamily::INET } else { rustix::net::AddressFamily::INET6 };
        let flags = rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, rustix::net::SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &remote) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let stream = TcpStream::from(socket);
        // A call must not wait for the acknowledgement of the one before (RFC 1122 section 4.2.3.4 lets applications choose).
        stream.set_nodelay(true)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, stream.as_fd(), epoll::EventData::new_u64(number.into()), flags)?;
        let (chain, out) = (RxChain::new(), VecDeque::new());
        Ok(Socket { stream, chain, out, connected: false, ending: false, closed: false, dirty: false })
    }

    fn handle_ready(&mut self, event: epoll::Event) {
        let number = event.data.u64() as u32;
        let flags = event.flags;
        let ends = flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        let Some(socket) = self.sockets.get_mut(number as usize).filter(|socket| !socket.closed) else { return };
        if !socket.connected {
            match socket.stream.take_error() {
                Ok(None) if !flags.contains(epoll::EventFlags::HUP) => {}
                _ => return self.fail(number),
            }
            if flags.contains(epoll::EventFlags::OUT) {
                socket.connected = true;
                self.events.push_back(StreamEvent::Connected(StreamKey(number)));
            }
        }
        if flags.contains(epoll::EventFlags::OUT) {
            self.mark_dirty(number);
        }
        self.sockets[number as usize].ending |= ends;
        if ends || flags.contains(epoll::EventFlags::IN) {
            self.read(number);
        }
    }

    fn mark_dirty(&mut self, number: u32) {
        let socket = &mut self.sockets[number as usize];
        if !socket.dirty && !socket.out.is_empty() {
            socket.dirty = true;
            self.dirty.push(number);
        }
    }

    fn fail(&mut self, number: u32) {
        let socket = &mut self.sockets[number as usize];
        if !socket.closed {
            socket.closed = true;
            socket.out.clear();
            let _ = epoll::delete(&self.epoll, socket.stream.as_fd());
            self.events.push_back(StreamEvent::Closed(StreamKey(number)));
        }
    }

    /// Reads until there is nothing more, or the turn's share is used up.
    fn read(&mut self, number: u32) {
        let mut took = false;
        for turn in 0..READS_PER_TURN {
            let socket = &mut self.sockets[number as usize];
            let Some(fragment) = self.arena.reserve(READ_MIN) else {
                self.unread.push(number);
                break;
            };
            let room = fragment.spare();
            let asked = room.len();
            match socket.stream.read(room) {
                Ok(0) => {
                    self.fail(number);
                    break;
                }
                Ok(count) => {
                    self.counters.reads += 1;
                    self.counters.read_bytes += count as u64;
                    socket.chain.push(RxBuf::from_slice(fragment.commit(count)));
                    took = true;
                    if count < asked && !socket.ending {
                        // Edge-triggered: the next byte is an event of its own; the end, once told, is not (epoll(7)).
                        break;
                    }
                    if turn + 1 == READS_PER_TURN {
                        self.unread.push(number);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.fail(number);
                    break;
                }
            }
        }
        if took {
            // Before a `Closed` that this read has found.
            let event = StreamEvent::Readable(StreamKey(number));
            match self.events.back() {
                Some(StreamEvent::Closed(key)) if key.0 == number => self.events.insert(self.events.len() - 1, event),
                _ => self.events.push_back(event),
            }
        }
    }

    /// Whether everything was taken.
    fn write(&mut self, number: u32) -> io::Result<bool> {
        let socket = &mut self.sockets[number as usize];
        while !socket.out.is_empty() {
            let pieces: smallvec::SmallVec<[IoSlice<'_>; 64]> =
                socket.out.iter().take(PIECES_MAX).map(|slice| IoSlice::new(slice)).collect();
            let result = socket.stream.write_vectored(&pieces);
            drop(pieces);
            match result {
                Ok(mut count) => {
                    self.counters.writes += 1;
                    self.counters.written_bytes += count as u64;
                    while let Some(front) = socket.out.front_mut().filter(|_| count > 0) {
                        let taken = count.min(front.len());
                        front.advance(taken);
                        count -= taken;
                        if front.is_empty() {
                            socket.out.pop_front();
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.counters.send_buffer_full += 1;
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn poll(&mut self, timeout: Option<Timespec>) -> usize {
        let mut room = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        // An error is an interruption by a signal: the next turn asks again.
        let Ok((ready, _)) = epoll::wait(&self.epoll, &mut room, timeout.as_ref()) else { return 0 };
        for event in ready.iter() {
            self.handle_ready(*event);
        }
        ready.len()
    }
}

impl Transport for KernelTransport {
    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn receive(&mut self) -> usize {
        let unread = std::mem::take(&mut self.unread);
        let more = unread.len();
        unread.into_iter().for_each(|number| self.read(number));
        more + self.poll(Some(Timespec { tv_sec: 0, tv_nsec: 0 }))
    }

    fn poll_event(&mut self) -> Option<StreamEvent> {
        self.events.pop_front()
    }

    fn connect(&mut self, remote: SocketAddr) -> Result<StreamKey, TransportError> {
        let number = self.sockets.len() as u32;
        let socket = self.open(number, remote).map_err(|error| TransportError::Connect(remote, error.to_string()))?;
        self.sockets.push(socket);
        Ok(StreamKey(number))
    }

    fn reopen(&mut self, stream: StreamKey, remote: SocketAddr) -> Result<(), TransportError> {
        let failed = |error: io::Error| TransportError::Connect(remote, error.to_string());
        let before = self.sockets.get(stream.0 as usize).ok_or(TransportError::Closed)?;
        // A reset: no TIME-WAIT keeps the port.
        rustix::net::sockopt::set_socket_linger(&before.stream, Some(std::time::Duration::ZERO))
            .map_err(|error| failed(error.into()))?;
        let socket = self.open(stream.0, remote).map_err(failed)?;
        self.sockets[stream.0 as usize] = socket;
        self.dirty.retain(|number| *number != stream.0);
        self.unread.retain(|number| *number != stream.0);
        Ok(())
    }

    fn chain(&mut self, stream: StreamKey) -> Option<&mut RxChain> {
        self.sockets.get_mut(stream.0 as usize).map(|socket| &mut socket.chain)
    }

    fn received(&mut self, _: StreamKey) {}

    fn send(&mut self, stream: StreamKey, gather: &mut Vec<Slice>) -> Result<(), TransportError> {
        let socket = self.sockets.get_mut(stream.0 as usize).filter(|socket| !socket.closed);
        socket.ok_or(TransportError::Closed)?.out.extend(gather.drain(..));
        self.mark_dirty(stream.0);
        Ok(())
    }

    fn close(&mut self, stream: StreamKey) {
        if let Some(socket) = self.sockets.get_mut(stream.0 as usize) {
            // What is queued is of no interest any more: every reply was waited for.
            socket.out.clear();
            let _ = socket.stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn transmit(&mut self) -> usize {
        let dirty = std::mem::take(&mut self.dirty);
        let count = dirty.len();
        for number in dirty {
            self.sockets[number as usize].dirty = false;
            // Not everything taken: epoll says when there is room again.
            if self.write(number).is_err() {
                self.fail(number);
            }
        }
        count
    }

    fn wait(&mut self, until: Instant) {
        let wait = until.since(self.now());
        if wait.is_zero() || !self.events.is_empty() || !self.unread.is_empty() {
            return;
        }
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        self.poll(Some(timeout));
    }

    fn pools(&self) -> (PagePool, PagePool) {
        self.pools.clone()
    }

    fn retransmissions(&mut self) -> u64 {
        use crate::raw::syscall::tcp_retransmissions;
        self.sockets.iter().map(|socket| u64::from(tcp_retransmissions(socket.stream.as_fd()).unwrap_or(0))).sum()
    }

    fn figures(&mut self, out: &mut Vec<Figure>) {
        append_figures(&self.counters, out);
    }
}

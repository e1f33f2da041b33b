//! One call at a time over a transport: what happens before the load starts.
//!
//! Waits for each reply, on the transport's clock. Deliberately not here: what is asked (`prepare`).

use std::net::SocketAddr;

use super::protocol::{self, CallFront, Caller, Fault};
use super::transport::{StreamEvent, StreamKey, Transport, TransportError};
use crate::buf::FragmentArena;
use crate::rpc::record::{RecordLimits, RecordReader, RecordState};
use crate::rpc::xdr::Encoder;
use crate::time::{Duration, Instant};

/// Bytes of a call or of a reply at most: far more than those of MOUNT and of the procedures on names.
const MESSAGE_MAX: usize = 32 << 10;
const LIMITS: RecordLimits = RecordLimits { record_bytes_max: MESSAGE_MAX as u32, fragments_max: 64, empty_fragments_max: 4 };

/// Why a conversation failed.
#[derive(Debug, thiserror::Error)]
pub enum ConversationError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("{0} did not accept the connection within {1:?}")]
    NoConnection(SocketAddr, Duration),
    #[error("{0} refused or closed the connection")]
    Closed(SocketAddr),
    #[error("no answer from {0} within {1:?}")]
    NoAnswer(SocketAddr, Duration),
    #[error("{0} answered what does not decode")]
    Malformed(SocketAddr),
    #[error("{0} refused the call: reply_stat {1}, {2} (RFC 5531 section 9)")]
    Rejected(SocketAddr, u32, u32),
}

/// A connection to one program, version and caller.
pub struct Conversation<'t, T> {
    transport: &'t mut T,
    stream: StreamKey,
    remote: SocketAddr,
    front: CallFront,
    arena: FragmentArena,
    xid: u32,
    timeout: Duration,
}

impl<'t, T: Transport> Conversation<'t, T> {
    /// Connects and waits for it.
    pub fn open(
        transport: &'t mut T,
        remote: SocketAddr,
        (program, version): (u32, u32),
        caller: &Caller,
        timeout: Duration,
    ) -> Result<Conversation<'t, T>, ConversationError> {
        let arena = FragmentArena::new(transport.pools().0).ok_or(TransportError::Full)?;
        let stream = transport.connect(remote)?;
        let deadline = transport.now() + timeout;
        loop {
            turn(transport, deadline);
            match event_of(transport, stream) {
                Some(StreamEvent::Connected(_)) => break,
                Some(StreamEvent::Closed(_)) => return Err(ConversationError::Closed(remote)),
                _ if transport.now() >= deadline => return Err(ConversationError::NoConnection(remote, timeout)),
                _ => {}
            }
        }
        // Xids of its own: the server's reply cache must not take a call for one of another run from the same port.
        let xid = transport.now().nanos() as u32 ^ std::process::id().rotate_left(16);
        let front = CallFront::new(program, version, Some(caller));
        Ok(Conversation { transport, stream, remote, front, arena, xid, timeout })
    }

    /// The results of a call that was accepted.
    pub fn call(&mut self, procedure: u32, arguments: impl FnOnce(&mut Encoder<'_>)) -> Result<Vec<u8>, ConversationError> {
        self.xid = self.xid.wrapping_add(1);
        let fragment = self.arena.reserve(MESSAGE_MAX).ok_or(TransportError::Full)?;
        let encoded = self.front.encode(fragment.spare(), self.xid, procedure, 0, arguments);
        let len = encoded.ok_or(TransportError::Full)?;
        let mut gather = vec![fragment.commit(len)];
        self.transport.send(self.stream, &mut gather)?;
        self.transport.transmit();
        let deadline = self.transport.now() + self.timeout;
        let mut reader = RecordReader::default();
        loop {
            turn(self.transport, deadline);
            let event = event_of(self.transport, self.stream);
            if let Some(results) = self.take_reply(&mut reader)? {
                return Ok(results);
            }
            if matches!(event, Some(StreamEvent::Closed(_))) {
                return Err(ConversationError::Closed(self.remote));
            }
            if self.transport.now() >= deadline {
                return Err(ConversationError::NoAnswer(self.remote, self.timeout));
            }
        }
    }

    fn take_reply(&mut self, reader: &mut RecordReader) -> Result<Option<Vec<u8>>, ConversationError> {
        let malformed = ConversationError::Malformed(self.remote);
        let Some(chain) = self.transport.chain(self.stream) else { return Ok(None) };
        let received = chain.all();
        match reader.poll(&LIMITS, &received) {
            RecordState::Incomplete => return Ok(None),
            RecordState::Bad(_) => return Err(malformed),
            RecordState::Complete => {}
        }
        let mut assembly = Vec::new();
        let answer = match protocol::accepted(reader.record(&received, &mut assembly)) {
            Ok((xid, results)) if xid == self.xid => Ok(Some(results.rest().to_vec())),
            Ok(_) => Ok(None),
            Err(Fault::Rejected { reply, stat }) => Err(ConversationError::Rejected(self.remote, reply, stat)),
            Err(_) => Err(malformed),
        };
        chain.consume(reader.finish());
        self.transport.received(self.stream);
        answer
    }

    /// Ends the connection.
    pub fn close(self) {
        self.transport.close(self.stream);
        self.transport.transmit();
    }

    /// The server's address and port.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    pub fn malformed(&self) -> ConversationError {
        ConversationError::Malformed(self.remote)
    }
}

fn turn<T: Transport>(transport: &mut T, deadline: Instant) {
    let work = transport.receive() + transport.transmit();
    if work == 0 {
        transport.wait(deadline);
    }
}

/// The most telling event of the stream so far; those of other streams, which are closing, say nothing.
fn event_of<T: Transport>(transport: &mut T, stream: StreamKey) -> Option<StreamEvent> {
    let mut last = None;
    while let Some(event) = transport.poll_event() {
        let (StreamEvent::Connected(key) | StreamEvent::Readable(key) | StreamEvent::Closed(key)) = event;
        if key == stream && !matches!(last, Some(StreamEvent::Closed(_))) {
            last = Some(event);
        }
    }
    last
}

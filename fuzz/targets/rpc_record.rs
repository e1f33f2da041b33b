//! Byte streams in pieces of any size, and datagrams, into the RPC server with its real programs.
//!
//! Oracles: no panic; replies are whole records that decode; limits hold; no page is lost. In the second form of input the
//! same stream is handed over in pieces and in one, and must have the same replies; an independent reader of record marks must
//! have found the same number of records.

use std::net::SocketAddr;

use nfsplice::time::Duration;

use super::input::Input;
use super::reply::Answer;
use super::server::{CLIENT, Parking, Reply, Server, rpc_options};

/// `call`: an RPC call in AUTH_SYS with the given arguments, from its xid on.
pub fn call(xid: u32, program: u32, version: u32, procedure: u32, arguments: &[u8]) -> Vec<u8> {
    let credential = [0, 4, u32::from_be_bytes(*b"fuzz"), 0, 0, 1, 100];
    let mut words = vec![xid, 0, 2, program, version, procedure, 1, 4 * credential.len() as u32];
    words.extend(credential);
    words.extend([0, 0]);
    let header = words.iter().flat_map(|word| word.to_be_bytes());
    header.chain(arguments.iter().copied()).collect()
}

fn fragment(bytes: &[u8], last: bool) -> Vec<u8> {
    let marker = u32::from(last) << 31 | bytes.len() as u32;
    [&marker.to_be_bytes()[..], bytes].concat()
}

/// Bytes of a stream: as they are, with a marker in front, or a call in fragments.
fn stream_bytes(op: u8, input: &mut Input<'_>) -> Vec<u8> {
    let len = usize::from(input.byte());
    match op & 3 {
        0 => input.bytes(len).to_vec(),
        1 => fragment(input.bytes(len), op & 4 == 0),
        2 => vec![0; len],
        _ => {
            let program = [100_003, 100_005, 100_000, 200_000][usize::from(op >> 2 & 3)];
            let (version, procedure, size) = (u32::from(input.byte() & 7), u32::from(input.byte() & 31), input.byte());
            let message = call(u32::from(input.byte()), program, version, procedure, input.bytes(len));
            let size = if size == 0 { message.len() } else { usize::from(size) };
            let count = message.len().div_ceil(size);
            message.chunks(size).enumerate().flat_map(|(at, piece)| fragment(piece, at + 1 == count)).collect()
        }
    }
}

/// Replies decode as far as their headers go.
fn check(replies: &[Reply]) {
    for reply in replies {
        let message = match reply.destination {
            nfsplice::rpc::Destination::Stream(_) => &reply.bytes[4..],
            nfsplice::rpc::Destination::Datagram { .. } => &reply.bytes[..],
        };
        let mut answer = Answer::new(message);
        answer.u32();
        answer.header();
    }
}

/// Several connections and datagrams, with completions, acknowledgements and time in any order.
fn conversation(how: u8, input: &mut Input<'_>) {
    let address: SocketAddr = CLIENT.parse().expect("an address");
    let mut server = Server::new(Parking::from_bits(how));
    let mut key = 0;
    while !input.is_empty() {
        let op = input.byte();
        let stream = usize::from(op >> 6);
        match op & 15 {
            0..=7 => {
                let size = usize::from(input.byte() & 0x7f);
                let bytes = stream_bytes(op, input);
                let size = if size == 0 { bytes.len().max(1) } else { size };
                bytes.chunks(size).for_each(|piece| server.push(stream, piece));
                server.read(stream);
            }
            8 | 9 => {
                key += 1;
                server.connect(key, address);
            }
            10 => {
                let len = usize::from(input.byte());
                let bytes = match op >> 4 & 1 {
                    0 => input.bytes(len).to_vec(),
                    _ => call(len as u32, 100_000 + u32::from(input.byte() & 7), 3, input.byte().into(), input.bytes(len)),
                };
                server.datagram(address, &bytes);
            }
            11 => drop(server.complete()),
            12 => server.acknowledge(stream),
            13 => server.now += Duration::from_millis(u64::from(input.byte()) << (op >> 4)),
            14 => server.end(stream),
            _ if op >> 4 == 15 => server.parts.rpc.drain(),
            _ => {
                if stream < server.streams.len() {
                    let gone = server.streams.remove(stream);
                    server.parts.rpc.closed(gone.key);
                }
            }
        }
        if op & 16 == 0 {
            check(&server.turn());
            forget_closed(&mut server);
        }
    }
    check(&server.settle());
    server.streams.clear();
    server.parts.check_and_drop();
}

fn forget_closed(server: &mut Server) {
    let rpc = &mut server.parts.rpc;
    server.streams.retain(|stream| {
        if stream.closed.is_some() {
            rpc.closed(stream.key);
        }
        stream.closed.is_none()
    });
}

/// Everything that can be answered at once, without the clock going on.
fn drain(server: &mut Server, replies: &mut Vec<Vec<u8>>) {
    loop {
        let batch = server.turn();
        check(&batch);
        server.acknowledge(0);
        if batch.is_empty() && server.parts.rpc.resumable_len() == 0 {
            return;
        }
        replies.extend(batch.into_iter().map(|reply| reply.bytes));
    }
}

/// What the server makes of a stream that comes in these pieces: replies, whether it was closed, records taken.
fn answers(pieces: &[Vec<u8>]) -> (Vec<Vec<u8>>, bool, u64) {
    let mut server = Server::new(Parking::Never);
    assert!(server.connect(1, CLIENT.parse().expect("an address")));
    let mut replies = Vec::new();
    for piece in pieces {
        server.push(0, piece);
        server.read(0);
        drain(&mut server, &mut replies);
    }
    let closed = server.streams[0].closed.is_some();
    let records = server.parts.rpc.counters().nettcpcnt;
    server.streams.clear();
    server.parts.check_and_drop();
    (replies, closed, records)
}

/// Complete records at the front of a stream (RFC 5531 section 11), and whether a limit is broken behind them.
fn reference_records(mut rest: &[u8]) -> (u64, bool) {
    let limits = rpc_options();
    let mut records = 0;
    'record: loop {
        let (mut bytes, mut fragments, mut empty) = (0, 0, 0);
        loop {
            let Some((marker, more)) = rest.split_first_chunk::<4>() else { return (records, false) };
            let marker = u32::from_be_bytes(*marker);
            let (len, last) = (marker & !(1 << 31), marker >> 31 == 1);
            bytes += u64::from(len);
            fragments += 1;
            empty += u32::from(len == 0);
            let too_many = fragments > limits.fragments_max || empty > limits.empty_fragments_max;
            let too_short = last && bytes < 8;
            if bytes > u64::from(limits.record_bytes_max) || too_many || too_short {
                return (records, true);
            }
            let Some((_, more)) = more.split_at_checked(len as usize) else { return (records, false) };
            rest = more;
            if last {
                records += 1;
                continue 'record;
            }
        }
    }
}

/// One stream, in the input's pieces and in one.
fn comparison(input: &mut Input<'_>) {
    let mut pieces = Vec::new();
    while !input.is_empty() {
        let op = input.byte();
        let bytes = stream_bytes(op, input);
        let size = if op >> 4 == 0 { bytes.len().max(1) } else { usize::from(op >> 4) * 3 };
        pieces.extend(bytes.chunks(size).map(<[u8]>::to_vec));
    }
    let whole = pieces.concat();
    let (expected, broken) = reference_records(&whole);
    let apart = answers(&pieces);
    let together = answers(&[whole]);
    let (replies, closed, records) = together;
    assert_eq!((apart.1, apart.2), (closed, records), "the same bytes in other pieces, other records");
    if closed {
        // A connection that is given up takes with it the replies that are still queued: how many depends on the pieces.
        let common = apart.0.len().min(replies.len());
        assert!(apart.0[..common] == replies[..common], "the same bytes in other pieces, other replies");
    } else {
        assert!(apart.0 == replies, "the same bytes in other pieces, other replies");
    }
    assert!(replies.len() as u64 <= records);
    assert!(closed || !broken, "a limit was broken and nobody minded");
    assert!(closed || records == expected, "{records} records instead of {expected}");
}

pub fn fuzz(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() {
        how @ 0..=0x7f => conversation(how, &mut input),
        _ => comparison(&mut input),
    }
}

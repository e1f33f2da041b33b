//! Writes the seeds of the corpora: one conversation of a client with the server, in the form of each target.
//! `cargo run --no-default-features --example fuzz_seeds [FOLDER]`, then `scripts/fuzz.sh` and `-merge=1` (docs/testing.md).

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

#[allow(dead_code, reason = "only what makes seeds is used here")]
#[path = "targets/mod.rs"]
mod targets;

use targets::reply::{Answer, Header};
use targets::rpc_record::call;
use targets::server::{CLIENT, Parking, READ_BYTES_MAX, Server};

const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;
const RPCBIND: u32 = 100_000;

fn word(value: u32) -> Vec<u8> {
    value.to_be_bytes().to_vec()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().copied().flat_map(word).collect()
}

fn opaque(bytes: &[u8]) -> Vec<u8> {
    let mut encoded = [&word(bytes.len() as u32)[..], bytes].concat();
    encoded.resize(encoded.len().next_multiple_of(4), 0);
    encoded
}

/// A client that keeps every message it sends.
struct Session {
    server: Server,
    messages: Vec<Vec<u8>>,
}

impl Session {
    /// Makes one call; the handles its reply brought.
    fn call(&mut self, program: u32, version: u32, procedure: u32, arguments: &[&[u8]]) -> Vec<Vec<u8>> {
        let message = call(self.messages.len() as u32 + 1, program, version, procedure, &arguments.concat());
        self.server.push(0, &record(&message));
        self.messages.push(message);
        self.server.read(0);
        let replies = self.server.settle();
        assert_eq!(replies.len(), 1, "program {program} version {version} procedure {procedure}");
        let mut answer = Answer::new(&replies[0].bytes[4..]);
        answer.u32();
        assert_eq!(answer.header(), Header::Success);
        let mut handles = Vec::new();
        match program {
            NFS => assert_eq!(answer.nfs3(procedure, None, READ_BYTES_MAX, &mut handles), 0, "procedure {procedure}"),
            MOUNT => answer.mount(procedure, &mut handles),
            _ => {}
        }
        handles
    }

    fn nfs(&mut self, procedure: u32, arguments: &[&[u8]]) -> Vec<Vec<u8>> {
        self.call(NFS, 3, procedure, arguments)
    }
}

fn record(message: &[u8]) -> Vec<u8> {
    [&word(1 << 31 | message.len() as u32)[..], message].concat()
}

/// Every procedure once: the messages.
fn session() -> Vec<Vec<u8>> {
    let mut server = Server::new(Parking::Never);
    assert!(server.connect(1, CLIENT.parse::<SocketAddr>().expect("an address")));
    let mut session = Session { server, messages: Vec::new() };
    let service = words(&[NFS, 3, 6, 0]);
    session.call(RPCBIND, 2, 3, &[&service]);
    session.call(RPCBIND, 2, 4, &[]);
    session.call(RPCBIND, 3, 3, &[&words(&[NFS, 3]), &opaque(b"tcp"), &opaque(b""), &opaque(b"")]);
    session.call(RPCBIND, 4, 12, &[]);
    let root = opaque(&session.call(MOUNT, 3, 1, &[&opaque(b"/export")])[0]);
    for procedure in [2, 5] {
        session.call(MOUNT, 3, procedure, &[]);
    }
    // sattr3: a mode and nothing else.
    let mode = words(&[1, 0o644, 0, 0, 0, 0, 0]);
    let stay = words(&[0; 6]);
    let name = |name: &[u8]| opaque(name);
    session.nfs(0, &[]);
    session.nfs(1, &[&root]);
    for procedure in 18..=20 {
        session.nfs(procedure, &[&root]);
    }
    session.nfs(4, &[&root, &word(0x3f)]);
    let file = opaque(&session.nfs(8, &[&root, &name(b"a"), &word(1), &mode])[0]);
    session.nfs(8, &[&root, &name(b"b"), &word(2), &[7; 8]]);
    session.nfs(7, &[&file, &words(&[0, 0, 20, 0]), &opaque(&[0x55; 20])]);
    session.nfs(21, &[&file, &words(&[0, 0, 0])]);
    session.nfs(6, &[&file, &words(&[0, 0, 100])]);
    session.nfs(2, &[&file, &mode, &word(0)]);
    session.nfs(2, &[&file, &words(&[0, 0, 0, 1, 0, 9, 1, 1, 0])]);
    let directory = opaque(&session.nfs(9, &[&root, &name(b"c"), &mode])[0]);
    let link = opaque(&session.nfs(10, &[&directory, &name(b"l"), &stay, &name(b"../a")])[0]);
    session.nfs(5, &[&link]);
    session.nfs(11, &[&directory, &name(b"n"), &word(7), &stay]);
    session.nfs(15, &[&file, &directory, &name(b"h")]);
    session.nfs(3, &[&directory, &name(b"h")]);
    session.nfs(14, &[&directory, &name(b"h"), &root, &name(b"b")]);
    session.nfs(16, &[&root, &words(&[0; 4]), &word(1024)]);
    session.nfs(17, &[&root, &words(&[0; 4]), &words(&[512, 4096])]);
    session.nfs(12, &[&directory, &name(b"l")]);
    session.nfs(12, &[&directory, &name(b"n")]);
    session.nfs(13, &[&root, &name(b"c")]);
    session.call(MOUNT, 3, 3, &[&opaque(b"/export")]);
    session.messages
}

/// As raw bytes of a stream (op 0 of `rpc_record`), `size` at a time.
fn stream_ops(messages: &[Vec<u8>], size: usize) -> Vec<u8> {
    let stream: Vec<u8> = messages.iter().flat_map(|message| record(message)).collect();
    stream.chunks(size).flat_map(|piece| [&[0, piece.len() as u8][..], piece].concat()).collect()
}

/// The same with the byte that tells the sizes of buffers, and a connection first.
fn conversation_ops(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut ops = vec![8];
    for message in messages {
        for piece in record(message).chunks(200) {
            ops.extend([0, 0x30, piece.len() as u8]);
            ops.extend(piece);
        }
        // A completion and an acknowledgement.
        ops.extend([11, 12]);
    }
    ops
}

/// A handshake, each message as data of the connection, acknowledgements.
fn packet_ops(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut ops = vec![5, 1];
    for message in messages {
        let record = record(message);
        ops.push(6);
        ops.extend((record.len() as u16).to_be_bytes());
        ops.extend(record);
        ops.push(14);
    }
    // FIN.
    ops.extend([3, 0x11, 0, 0, 0, 0, 0xff, 0xff, 0, 14]);
    ops
}

fn raw_frames(input: &[u8]) -> Vec<u8> {
    let mut ops = vec![0];
    for frame in targets::packet::frames(input) {
        ops.push(0);
        ops.extend((frame.len() as u16).to_be_bytes());
        ops.extend(frame);
    }
    ops
}

/// The same session over IPv6: addresses used at once; looked for first, from routers, in a VLAN.
fn packet_ipv6_seeds(messages: &[Vec<u8>], write: &dyn Fn(&str, &str, &[u8])) {
    // A router's advertisement of a prefix: flags and lifetime, times, then the option.
    let mut advertisement = vec![0xbd, 1, 8, 64, 0, 7, 8, 40, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 2, 88];
    advertisement.extend([0, 0, 0, 0, 0xfd, 0x4e, 0x66, 0x73, 0, 1]);
    advertisement.extend([0; 10]);
    for (at, part) in messages.chunks(12).enumerate() {
        for (how, start) in [(0, &[][..]), (7, &[12, 12, 12, 12, 12][..]), (8, &[12][..])] {
            let mut ops = vec![if how == 8 { 0x38 } else { 0 }, 0x8d, how];
            ops.extend(start);
            ops.extend(&advertisement);
            ops.extend([0x9d, 0, 1]);
            ops.extend(&packet_ops(part)[2..]);
            write("packet", &format!("ipv6-{at}-{how:02x}"), &ops);
        }
    }
    // Discovery, echo, a datagram, "packet too big", extension headers, another VLAN.
    let mut ops = vec![0, 0x8d, 0, 12, 0xbd, 2, 4, 0, 0, 0, 0, 8, 1, 1, 2, 0, 0, 0, 0, 1];
    ops.extend([0xad, 0, 12, 128, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4]);
    ops.extend([&[0xed, messages[0].len() as u8][..], &messages[0]].concat());
    ops.extend([0xcd, 2, 0, 5, 0, 0xad, 6, 16, 6, 0, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    ops.extend([0xdd, 1, 0xad, 0, 8, 128, 0, 0, 0, 0, 1, 0, 1, 12, 12]);
    write("packet", "ipv6-no-connection", &ops);
}

fn packet_seeds(messages: &[Vec<u8>], write: &dyn Fn(&str, &str, &[u8])) {
    for (at, part) in messages.chunks(12).enumerate() {
        for how in [0, 1, 0x38, 0x58] {
            write("packet", &format!("session-{at}-{how:02x}"), &[&[how][..], &packet_ops(part)].concat());
        }
        write("packet", &format!("frames-{at}"), &raw_frames(&[&[0][..], &packet_ops(part)].concat()));
    }
    packet_ipv6_seeds(messages, write);
    // UDP to rpcbind and mountd, to a closed port; ARP; an echo request; an ICMP error about the last answer.
    let datagram = |op: u8, message: &[u8]| [&[op, message.len() as u8][..], message].concat();
    let mut ops = vec![0];
    ops.extend(datagram(0x08, &messages[0]));
    ops.extend(datagram(0x18, &messages[4]));
    ops.extend(datagram(0x28, &messages[0]));
    ops.extend([9, 1, 1, 1, 9, 2, 2, 1, 0x49, 3, 2, 1]);
    ops.extend([0x02, 12, 8, 0, 0xf7, 0xff, 0, 0, 0, 0, 1, 2, 3, 4]);
    ops.extend([10, 3, 4, 2, 0, 10, 3, 3, 0, 0, 11, 255, 12, 12]);
    write("packet", "no-connection", &ops);
}

/// Reads of a file of 3,000 bytes by a peer that acknowledges nothing for long: the send queue's limit, then room again.
fn unacknowledged_reads() -> Vec<u8> {
    let mut server = Server::new(Parking::Never);
    assert!(server.connect(1, CLIENT.parse::<SocketAddr>().expect("an address")));
    let root = opaque(&server.parts.root_handle(1));
    let mut session = Session { server, messages: Vec::new() };
    let file = opaque(&session.nfs(3, &[&root, &opaque(b"file")])[0]);
    let mut ops = vec![8];
    for xid in 0..20 {
        let record = record(&call(xid, NFS, 3, 6, &[&file[..], &words(&[0, 0, 8192])].concat()));
        ops.extend([0, 0, record.len() as u8]);
        ops.extend(record);
        if xid == 15 {
            ops.extend([12, 12]);
        }
    }
    ops
}

/// `op, how, arguments` for each kind of call, with the handle of the root.
fn call_seeds(write: &dyn Fn(&str, &str, &[u8])) {
    let ops: &[&[u8]] = &[
        &[1, 0, 0],
        &[3, 0, 0, 0],
        &[3, 0, 0, 1],
        &[4, 0, 0, 0x3f],
        &[8, 0, 0, 4, 1, 1, 1, 0xff],
        &[7, 0, 4, 0, 2, 0, 20, 0],
        &[6, 0, 4, 0, 1, 0, 0],
        &[6, 0, 3, 2, 16, 0, 0],
        &[21, 0, 3, 0, 0, 0],
        &[2, 0, 3, 8, 4, 0],
        &[9, 0, 0, 5, 1, 1, 0xff],
        &[10, 0, 0, 6, 0, 0, 9],
        &[5, 0, 6],
        &[11, 0, 0, 4, 7, 0],
        &[15, 0, 3, 0, 5],
        &[14, 0, 0, 4, 0, 5],
        &[12, 0, 0, 5],
        &[13, 0, 0, 1],
        &[16, 0, 0, 0, 0, 4, 0],
        &[17, 0, 0, 0, 0, 4, 0, 8, 0],
        &[18, 0, 0],
        &[19, 0, 0],
        &[20, 0, 0],
        &[22, 0, 0],
        &[22, 0, 1],
        &[23, 4, 5],
        &[24, 4, 2, 3],
        &[24, 0, 3, 3],
        &[25, 0, 0, 3, 1, 4, 1, 2, 3, 4],
    ];
    for how in [0, 1, 6] {
        let all: Vec<u8> = ops.iter().flat_map(|op| op.iter().copied().chain([0xa0])).collect();
        write("nfs3_call", &format!("session-{how}"), &[&[how][..], &all].concat());
    }
    for (at, op) in ops.iter().enumerate() {
        write("nfs3_call", &format!("call-{at}"), &[&[0], *op, &[0xa0]].concat());
    }
}

fn tcp_seeds(write: &dyn Fn(&str, &str, &[u8])) {
    // Data both ways, a loss, a duplicate, another order, an old segment again, timers, a small window, both close.
    let ops = [
        9, 8, 0, 0x12, 0x11, 0x01, 0x11, 0x1a, 0xff, 9, 16, 0, 0x14, 3, 0x15, 0x13, 0x11, 0x01, 6, 0, 12, 0x11, 0x01, 0x19, 4, 0,
        1, 0x11, 12, 12, 0x0f, 2, 2, 0, 14, 3, 0, 7, 9, 31, 0, 0x11, 0x01, 0x11, 0x01, 0xfa, 255, 13, 0x11, 0x1d, 1, 0x11, 12,
    ];
    for how in [0, 1, 2, 4, 8, 16, 32, 14] {
        write("tcp_segments", &format!("loss-{how}"), &[&[how][..], &ops].concat());
        let forged = [8, 0, 0, 0, 0, 0, 0x10, 16, 0, 1, 0, 9, 0x17, 13, 6, 0x11, 0x18, 0, 0, 5, 0, 5, 0x12, 1, 0, 2, 0, 0];
        write("tcp_segments", &format!("forged-{how}"), &[&[how][..], &ops[..12], &forged, &ops[12..]].concat());
    }
}

/// The ends and the link as `setup` reads them, and what `more` can do.
fn tcp_more_seeds(write: &dyn Fn(&str, &str, &[u8])) {
    // Round trips with text both ways, some of it marked; a burst in place, segments joined, small writes, a pause, a burst lost.
    let transfer = [
        0xcf, 15, 9, 1, 0, 0x23, 0xcf, 10, 5, 40, 3, 0xcf, 4, 9, 0xcf, 5, 0x11, 0x11, 0xcf, 2, 0xcf, 11, 9, 0, 0xdf, 13, 12, 12,
        0xcf, 15, 12, 3, 0, 0x43, 0xdf, 14, 0x11, 0x01, 0xcf, 3, 3, 3, 0x01, 0xcf, 8, 1, 0xcf, 10, 3, 1, 1, 0xcf, 15, 3, 1, 0, 3,
    ];
    // A second connection, one from the other end, one from both, a closed port; floods; ends that lose their patience.
    let several = [
        0xcf, 1, 1, 0xdf, 1, 4, 0x11, 0x01, 0x11, 0xcf, 0, 1, 9, 4, 0, 0xcf, 1, 8, 0xdf, 1, 8, 0x11, 0x01, 0x11, 0x01, 0xdf, 16,
        9, 1, 0xdf, 16, 4, 6, 0xcf, 12, 0, 0xdf, 1, 1, 0xcf, 0, 0, 0xcf, 6, 1, 0xdf, 7, 20, 0xcf, 17, 3, 0xcf, 9,
    ];
    // Closed by the listening end, whose TIME-WAIT gives way to the next one between the same ports (RFC 6191).
    let reuse = [
        0xcf, 15, 2, 1, 0, 3, 0x1d, 0x01, 0x11, 0x0d, 0x11, 0x01, 0x11, 11, 9, 0xcf, 1, 0, 0x11, 0x01, 0x11, 0xcf, 15, 2, 1, 0,
        3, 0x0d, 0x1d,
    ];
    let setups: [[u8; 7]; 8] = [
        [0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0x85, 0x62, 0, 0, 0],
        [2, 4, 0xa5, 0xe1, 1, 1, 4],
        [8, 0, 0x5a, 0x7f, 5, 0, 1],
        [0x8b, 1, 0xaf, 0x62, 1, 0, 8],
        [0x16, 0, 0, 0, 0x61, 2, 0x12],
        [0x20, 8, 0x10, 0x10, 0x90, 0, 0x20],
        [0x43, 2, 0xa6, 0xe6, 0x2d, 0, 2],
    ];
    for (number, setup) in setups.iter().enumerate() {
        for (name, ops) in [("transfer", &transfer[..]), ("several", &several), ("reuse", &reuse)] {
            let how = if number % 2 == 0 { 0 } else { 0xc0 };
            write("tcp_segments", &format!("{name}-{number}"), &[&[how, 0xcf][..], setup, ops].concat());
        }
    }
}

fn main() {
    let root = std::env::args().nth(1).unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus").into());
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = Path::new(&root).join(target);
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(name), bytes).expect("a file");
    };
    let messages = session();
    packet_seeds(&messages, &write);
    call_seeds(&write);
    tcp_seeds(&write);
    tcp_more_seeds(&write);
    for how in [0, 1, 2] {
        write("rpc_record", &format!("unacknowledged-{how}"), &[&[how][..], &unacknowledged_reads()].concat());
    }
    for (at, part) in messages.chunks(8).enumerate() {
        for size in [40, 250] {
            write("rpc_record", &format!("compared-{at}-{size}"), &[&[0x80][..], &stream_ops(part, size)].concat());
        }
        for how in [0, 1, 2] {
            write("rpc_record", &format!("session-{at}-{how}"), &[&[how][..], &conversation_ops(part)].concat());
        }
    }
}

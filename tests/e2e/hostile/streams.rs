//! Peers that use the connection badly: half-closed, never reading, never sending, too many, too eager; and UDP noise.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::status::{NOENT, OK};
use super::{CLOSE_LIMIT, Case, Ground, expect_status};
use crate::client::{MOUNT, NFS, RPCBIND, Received, Reply, Rpc, Xdr, call_bytes, parse_reply, procedure, record};
use crate::server::SERVER_ADDRESS;

/// More than the server's send buffer for one connection, by far.
const UNREAD_REPLIES: u32 = 400;
const READ_BYTES: u32 = 256 << 10;

pub const CASES: &[Case] = &[
    ("half_closed_with_replies_pending", half_closed_with_replies_pending),
    ("peer_that_never_reads", peer_that_never_reads),
    ("twenty_peers_that_never_read", twenty_peers_that_never_read),
    ("reset_with_replies_pending", reset_with_replies_pending),
    ("connections_that_say_nothing", connections_that_say_nothing),
    ("half_a_marker_and_silence", half_a_marker_and_silence),
    ("thousand_short_connections", thousand_short_connections),
    ("repeated_xid_is_replayed", repeated_xid_is_replayed),
    ("repeated_xid_with_other_arguments", repeated_xid_with_other_arguments),
    ("udp_noise", udp_noise),
    ("closed_port", closed_port),
];

fn big_file(ground: &mut Ground) -> Result<Xdr> {
    let handle = match ground.witness.lookup(&ground.root.clone(), b"big") {
        Ok(handle) => handle,
        Err(_) => {
            let handle = ground.file("big", b"")?;
            ground.witness.write(&handle, 0, crate::client::FILE_SYNC, &vec![0x42; READ_BYTES as usize])?;
            handle
        }
    };
    Ok(Xdr::default().opaque(&handle).u64(0).u32(READ_BYTES))
}

/// Every reply comes, or the connection ends: not a hang, and no broken record.
fn half_closed_with_replies_pending(ground: &mut Ground) -> Result<()> {
    let read = big_file(ground)?;
    let mut rpc = ground.rpc()?;
    for _ in 0..16 {
        rpc.send(NFS, 3, procedure::READ, &read.0)?;
    }
    rpc.stream.shutdown(Shutdown::Write)?;
    let mut replies = 0;
    loop {
        match rpc.receive_within(CLOSE_LIMIT)? {
            Received::Record(bytes) => {
                parse_reply(&bytes)?;
                replies += 1;
            }
            Received::Closed => break,
            Received::Silence => bail!("the connection hangs after {replies} of 16 replies"),
        }
    }
    println!("    {replies} of 16 replies came after the half-close");
    Ok(())
}

/// Sends reads and takes nothing back. Sending stops when the server's window closes.
fn deaf_peer(ground: &Ground, read: &Xdr) -> Result<Rpc> {
    let mut rpc = ground.rpc()?;
    rpc.stream.set_write_timeout(Some(Duration::from_millis(300)))?;
    for _ in 0..UNREAD_REPLIES {
        if rpc.send(NFS, 3, procedure::READ, &read.0).is_err() {
            break;
        }
    }
    Ok(rpc)
}

fn others_are_served(ground: &mut Ground) -> Result<()> {
    let started = Instant::now();
    for _ in 0..50 {
        ground.rpc()?.getattr(&ground.root)?;
    }
    // Not a measurement: a server that serves others only after a timeout needs far longer.
    ensure!(started.elapsed() < Duration::from_secs(5), "50 calls of others took {:?}", started.elapsed());
    Ok(())
}

fn peer_that_never_reads(ground: &mut Ground) -> Result<()> {
    let read = big_file(ground)?;
    let _deaf = deaf_peer(ground, &read)?;
    others_are_served(ground)
}

fn twenty_peers_that_never_read(ground: &mut Ground) -> Result<()> {
    let read = big_file(ground)?;
    let mut deaf = Vec::new();
    for _ in 0..20 {
        deaf.push(deaf_peer(ground, &read)?);
    }
    others_are_served(ground)?;
    // A reader is served with data too, while the others hold what they hold.
    let mut rpc = ground.rpc()?;
    let (status, body) = rpc.nfs(procedure::READ, &read)?;
    ensure!(status == OK && body.len() > READ_BYTES as usize / 4, "READ gave nfsstat3 {status} and {} bytes", body.len());
    Ok(())
}

/// Closing a socket with unread data sends a reset.
fn reset_with_replies_pending(ground: &mut Ground) -> Result<()> {
    let read = big_file(ground)?;
    for _ in 0..20 {
        let mut rpc = ground.rpc()?;
        for _ in 0..4 {
            rpc.send(NFS, 3, procedure::READ, &read.0)?;
        }
        let mut first = [0; 1];
        std::io::Read::read_exact(&mut rpc.stream, &mut first)?;
    }
    others_are_served(ground)
}

/// Idle strangers may be closed, real clients must be served.
fn connections_that_say_nothing(ground: &mut Ground) -> Result<()> {
    let mut idle = Vec::new();
    for _ in 0..300 {
        match ground.bed.rpc_within(Duration::from_secs(2)) {
            Ok(rpc) => idle.push(rpc),
            Err(_) => break,
        }
    }
    println!("    {} idle connections", idle.len());
    drop(idle.split_off(idle.len().min(250)));
    others_are_served(ground)
}

fn half_a_marker_and_silence(ground: &mut Ground) -> Result<()> {
    let mut open = Vec::new();
    for length in 0..60 {
        let mut rpc = ground.rpc()?;
        let call = record(&call_bytes(7, NFS, 3, 0, &rpc.credential, &[]));
        rpc.send_raw(&call[..length.min(call.len() - 1)])?;
        open.push(rpc);
    }
    others_are_served(ground)
}

fn thousand_short_connections(ground: &mut Ground) -> Result<()> {
    let address = crate::bed::Bed::address();
    ground.bed.net.inside(|| -> Result<()> {
        for index in 0..1000 {
            let stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))
                .with_context(|| format!("connection {index}"))?;
            if index % 4 == 0 {
                Rpc::new(stream)?.null()?;
            }
        }
        Ok(())
    })?
}

/// The duplicate request cache: the second REMOVE is answered by the first one's reply, not by NOENT.
fn repeated_xid_is_replayed(ground: &mut Ground) -> Result<()> {
    ground.file("removed once", b"x")?;
    let mut rpc = ground.rpc()?;
    let xid = rpc.next_xid();
    let arguments = Xdr::default().opaque(&ground.root).opaque(b"removed once");
    let call = record(&call_bytes(xid, NFS, 3, procedure::REMOVE, &rpc.credential, &arguments.0));
    for attempt in 1..=3 {
        rpc.send_raw(&call)?;
        match rpc.receive()?.1 {
            Reply::Success(body) if body.starts_with(&[0; 4]) => {}
            other => bail!("attempt {attempt} was answered by {other:?}"),
        }
    }
    expect_status(&mut rpc, procedure::REMOVE, &arguments, &[NOENT])
}

/// Same xid, other file: a different request, and it must not get the first one's reply.
fn repeated_xid_with_other_arguments(ground: &mut Ground) -> Result<()> {
    ground.file("first", b"x")?;
    ground.file("second", b"x")?;
    let mut rpc = ground.rpc()?;
    let xid = rpc.next_xid();
    for name in [b"first".as_slice(), b"second"] {
        let arguments = Xdr::default().opaque(&ground.root).opaque(name);
        rpc.send_raw(&record(&call_bytes(xid, NFS, 3, procedure::REMOVE, &rpc.credential, &arguments.0)))?;
        match rpc.receive()?.1 {
            Reply::Success(body) if body.starts_with(&[0; 4]) => {}
            other => bail!("answered by {other:?}"),
        }
    }
    for name in [b"first".as_slice(), b"second"] {
        expect_status(&mut rpc, procedure::LOOKUP, &Xdr::default().opaque(&ground.root).opaque(name), &[NOENT])?;
    }
    Ok(())
}

/// rpcbind and MOUNT over UDP: cut, oversized and random datagrams, then a good call.
fn udp_noise(ground: &mut Ground) -> Result<()> {
    let mut random = crate::libnfs::Random(99);
    for (port, program, version) in [(111, RPCBIND, 2), (ground.mount_port, MOUNT, 3)] {
        let socket = ground.bed.net.udp(format!("{SERVER_ADDRESS}:{port}").parse()?)?;
        let call = call_bytes(5, program, version, 0, &ground.witness.credential, &[]);
        for length in 0..call.len() {
            socket.send(&call[..length])?;
        }
        for length in [1, 4, 8, 24, 500, 1472, 8000] {
            socket.send(&random.bytes(length))?;
        }
        // Answers to the noise are taken and thrown away.
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        let mut reply = [0; 2048];
        while socket.recv(&mut reply).is_ok() {}
        let answered = (0..10).any(|_| socket.send(&call).is_ok() && socket.recv(&mut reply).is_ok_and(|length| length == 24));
        ensure!(answered, "no reply to NULL over UDP port {port}");
    }
    Ok(())
}

/// A port without a listener refuses at once.
fn closed_port(ground: &mut Ground) -> Result<()> {
    let to = format!("{SERVER_ADDRESS}:5").parse()?;
    let outcome = ground.bed.net.inside(|| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2)))?;
    match outcome {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => bail!("{error} instead of a refusal"),
        Ok(_) => bail!("port 5 accepts"),
    }
}

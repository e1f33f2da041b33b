//! Two TCP endpoints talk over an in-memory link, on a clock that jumps: no DPDK, no sockets, no threads. To run it:
//! `cargo run --no-default-features --example tcp_pair`. `cargo test` runs it, too.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use nfsplice::buf::{Checksum, PagePool, RxPacket};
use nfsplice::tcp::{Endpoint, Event, Options, Reason, Transmit, TransmitLimits};
use nfsplice::time::{Duration, Instant};

const DELAY: Duration = Duration::from_millis(5);

/// The client sends `request`, the server sends back what it gets, both close. What the client got.
fn echo(request: &[u8]) -> Vec<u8> {
    let addresses: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
    let mut ends = [Endpoint::new(Options::default(), [1; 16]), Endpoint::new(Options::default(), [2; 16])];
    let mut link: VecDeque<(Instant, usize, Vec<u8>)> = VecDeque::new();
    let (mut now, mut transmit) = (Instant::from_millis(1), Transmit::default());
    let (mut heard, mut closed) = (Vec::new(), 0);

    // What is sent lies in pages, and is sent by reference.
    let pool = PagePool::anonymous(4, 4096).expect("memory");
    let page_with = |bytes: &[u8]| {
        let mut page = pool.allocate().expect("a page");
        page[..bytes.len()].copy_from_slice(bytes);
        page.freeze().slice(0..bytes.len())
    };
    ends[1].listen(2049).expect("a free port");
    let client = ends[0].connect(now, SocketAddr::new(addresses[0], 0), SocketAddr::new(addresses[1], 2049)).expect("to connect");
    ends[0].send(now, client, &mut vec![page_with(request)]).expect("an empty queue takes it");

    while closed < 2 {
        for (who, end) in ends.iter_mut().enumerate() {
            while let Some(event) = end.poll_event() {
                println!("{:>9} us  {}: {event:?}", now.nanos() / 1000, ["client", "server"][who]);
                match event {
                    Event::Readable(id) => {
                        let chain = end.receive(id).expect("a live id");
                        let bytes = chain.view(0, chain.len()).expect("all of it").to_vec();
                        chain.consume(usize::MAX);
                        end.received(now, id);
                        match who {
                            0 => heard.extend(bytes),
                            _ => end.send(now, id, &mut vec![page_with(&bytes)]).expect("room"),
                        }
                        if heard.len() >= request.len() {
                            end.close(now, id);
                        }
                    }
                    Event::PeerClosed(id) => end.close(now, id),
                    Event::Closed(_, Reason::Finished) => closed += 1,
                    Event::Closed(_, reason) => panic!("{reason:?}"),
                    _ => {}
                }
            }
            // Packets leave; a device would attach the payload by reference instead of copying it here.
            while end.poll_transmit(now, &TransmitLimits::default(), &mut transmit) {
                transmit.fill_checksum();
                let payload = transmit.payload.iter().flat_map(|slice| slice.to_vec());
                link.push_back((now + DELAY, 1 - who, transmit.header().iter().copied().chain(payload).collect()));
            }
        }
        // The clock jumps to whatever comes next.
        let timers = ends.iter().filter_map(|end| end.poll_timeout());
        let next = link.front().map(|first| first.0).into_iter().chain(timers).min();
        now = now.max(next.expect("a segment or a timer is due until both ends have closed"));
        while link.front().is_some_and(|first| first.0 <= now) {
            let Some((_, to, bytes)) = link.pop_front() else { break };
            ends[to].handle_segment(now, addresses[1 - to], addresses[to], RxPacket::from_vec(bytes), Checksum::Unknown);
        }
        ends.iter_mut().for_each(|end| end.handle_timeout(now));
    }
    heard
}

#[cfg_attr(test, test)]
fn main() {
    assert_eq!(echo(b"hello"), b"hello");
}

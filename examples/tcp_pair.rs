//! Two TCP endpoints talk over an in-memory link, on a clock that jumps: no DPDK, no sockets, no threads.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use nfsplice::buf::{Checksum, PagePool, RxPacket};
use nfsplice::tcp::{Endpoint, Event, Options, Transmit, TransmitLimits};
use nfsplice::time::{Duration, Instant};

const DELAY: Duration = Duration::from_millis(5);

fn main() {
    let addresses: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
    let mut ends = [Endpoint::new(Options::default(), [1; 16]), Endpoint::new(Options::default(), [2; 16])];
    let mut link: VecDeque<(Instant, usize, Vec<u8>)> = VecDeque::new();
    let mut now = Instant::from_millis(1);
    let mut transmit = Transmit::default();

    ends[1].listen(2049).expect("a free port");
    let client = ends[0].connect(now, SocketAddr::new(addresses[0], 0), SocketAddr::new(addresses[1], 2049)).expect("to connect");

    // The request: one page of memory, sent by reference.
    let pool = PagePool::anonymous(4, 4096).expect("memory");
    let mut page = pool.allocate().expect("a page");
    page[..5].copy_from_slice(b"hello");
    let mut hello = page.freeze();
    hello.truncate(5);
    ends[0].send(now, client, &mut vec![hello.clone()]).expect("an empty queue takes it");

    loop {
        // Applications: the server echoes and closes, the client closes too.
        for (who, end) in ends.iter_mut().enumerate() {
            while let Some(event) = end.poll_event() {
                println!("{:>6} us  {}: {event:?}", now.nanos() / 1000, ["client", "server"][who]);
                match event {
                    Event::Readable(id) => {
                        let chain = end.receive(id).expect("a live id");
                        println!("           {:?}", String::from_utf8_lossy(&chain.view(0, chain.len()).unwrap().to_vec()));
                        chain.consume(usize::MAX);
                        end.received(now, id);
                        if who == 1 {
                            end.send(now, id, &mut vec![hello.clone()]).expect("room");
                        }
                        end.close(now, id);
                    }
                    Event::Closed(..) if who == 0 => return,
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
        let timer = ends.iter().filter_map(|end| end.poll_timeout()).min();
        let Some(next) = link.front().map(|first| first.0).into_iter().chain(timer).min() else { return };
        now = now.max(next);
        while link.front().is_some_and(|first| first.0 <= now) {
            let Some((_, to, bytes)) = link.pop_front() else { break };
            ends[to].handle_segment(now, addresses[1 - to], addresses[to], RxPacket::from_vec(bytes), Checksum::Unknown);
        }
        for end in &mut ends {
            end.handle_timeout(now);
        }
    }
}

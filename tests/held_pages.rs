//! A few bytes that are not acknowledged hold a whole page of replies. Peers that do that on purpose must not keep everybody else's
//! replies from having pages, whatever they do not acknowledge.

mod support;

use nfsplice::buf::PagePool;
use nfsplice::time::Duration;
use support::nfs::{Args, GETATTR, NULL};
use support::server::Setup;

const PAGES: usize = 16;

#[test]
fn peers_that_take_no_replies_lose_their_connections_when_pages_are_short() {
    // Pages of 4 KiB, so that one is full after some tens of replies.
    let mut setup = Setup { fragments: Some(PagePool::anonymous(PAGES, 4096).unwrap()), ..Setup::default() };
    setup.client_tcp.receive_window_max = 4096;
    let mut rig = support::plain(&setup);
    let good = rig.connect();
    let root = rig.server.root.clone();
    let getattr = Args::new().opaque(&root);
    rig.call(good, GETATTR, &getattr).ok();
    let holders: Vec<usize> = (0..4).map(|_| rig.connect()).collect();
    for holder in &holders {
        // What it does not read closes its window.
        rig.client.streams[*holder].reads = false;
        for _ in 0..200 {
            rig.client.call(rig.now, *holder, NULL, &Args::new());
        }
    }
    rig.pass(Duration::from_millis(100));
    let mut held = 0;
    while rig.server.shard.rpc().counters().stalls_core == 0 {
        // One that is never taken, then others' until the page is full.
        rig.client.call(rig.now, holders[held % holders.len()], NULL, &Args::new());
        for _ in 0..32 {
            let asked = rig.client.call(rig.now, good, GETATTR, &getattr);
            if !rig.run(Duration::from_millis(500), |rig| rig.client.streams[good].has_reply(asked)) {
                break;
            }
        }
        held += 1;
        assert!(held < 100 * PAGES, "pages are never short");
    }
    let asked = rig.client.call(rig.now, good, GETATTR, &getattr);
    let answered = rig.run(Duration::from_secs(10), |rig| rig.client.streams[good].has_reply(asked));
    let counters = *rig.server.shard.rpc().counters();
    assert!(answered, "no page for it: {counters:?}");
    assert!(counters.closed_holding_pages >= 1, "{counters:?}");
    assert!(rig.client.streams[good].closed.is_none(), "whoever takes its replies is kept");
    assert!(holders.iter().any(|holder| rig.client.streams[*holder].closed.is_some()));
}

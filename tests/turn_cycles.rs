//! The server's own cost meter over a whole shard, with a counter that moves by one each time it is read: the figures are then
//! the readings, and the test is about which turns and stages get them.

mod support;

use std::cell::Cell;

use support::nfs::{self, Args};
use support::server::Setup;

thread_local! {
    static READINGS: Cell<u64> = const { Cell::new(0) };
}

fn read() -> u64 {
    READINGS.set(READINGS.get() + 1);
    READINGS.get()
}

#[test]
fn a_call_is_counted_in_every_stage_and_waiting_is_not() {
    let mut rig = support::plain(&Setup::default());
    rig.server.shard.set_cycle_counter(read);
    let stream = rig.connect();
    let root = rig.server.root.clone();
    rig.call(stream, nfs::GETATTR, &Args::new().opaque(&root));

    let before = rig.server.shard.cycles();
    rig.call(stream, nfs::GETATTR, &Args::new().opaque(&root));
    let after = rig.server.shard.cycles();
    for (stage, spent) in [
        ("receive", after.receive - before.receive),
        ("serve", after.serve - before.serve),
        ("transmit", after.transmit - before.transmit),
        ("flush", after.flush - before.flush),
    ] {
        assert!(spent > 0, "{stage} is not measured");
    }
    assert_eq!(after.busy, after.receive + after.serve + after.transmit + after.flush);

    for _ in 0..100 {
        assert_eq!(rig.server_turn(), 0);
    }
    let waited = rig.server.shard.cycles();
    assert_eq!(waited.busy, after.busy);
    assert!(waited.elapsed >= after.elapsed + 100, "an empty turn has no start");
}

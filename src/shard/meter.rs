//! Where a core's cycles go: those of the turns that found work, by stage.
//!
//! An empty turn is not work, whatever it costs: a core that polls is always running, and what matters is how much of it is
//! left. So an empty turn reads the counter once and adds nothing, and a busy one reads it once for each stage that found something
//! to do; what an empty stage took falls to the next one that was not. From one busy turn to the next the meter runs on, so that
//! the loop around the turns (the clock, publishing) is in the figures too.
//!
//! Deliberately not here: a counter of cycles. `serve` hands in the CPU's, tests one of their own; without one all is 0.

use crate::counters;

/// Reads a counter that runs at a constant rate and never back, on this core: the CPU's time-stamp counter.
pub type CycleCounter = fn() -> u64;

/// What a turn does, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Frames from the driver, IP, TCP up to the received bytes; timers.
    Receive,
    /// Connection events, records, RPC, the programs and their stores; replies into the send queues.
    Serve,
    /// TCP's packets, IP headers, chains of buffers.
    Transmit,
    /// The driver's transmit burst, with the release of what it has finished.
    Flush,
}

counters! {
    /// Cycles of one core, by its own counter: divide by `machine.tsc_hz` for seconds, by `rpc.rpccnt` for cycles per call.
    pub struct CycleCounters {
        /// Cycles since the core's start.
        elapsed,
        /// Cycles in turns that found work: the sum of the stages.
        busy,
        /// Frames from the driver, IP and TCP in, timers.
        receive,
        /// Records, RPC, programs, stores, replies into the send queues.
        serve,
        /// TCP out, IP headers, chains of buffers.
        transmit,
        /// The driver's transmit burst.
        flush,
    }
}

/// Belongs to one core and is told where in a turn it is.
pub struct Meter {
    read: CycleCounter,
    origin: u64,
    /// The counter when the last measured stage ended.
    last: u64,
    /// The last turn found work: the time since then counts.
    running: bool,
    counters: CycleCounters,
}

impl Meter {
    pub fn new(read: CycleCounter) -> Meter {
        let origin = read();
        Meter { read, origin, last: origin, running: false, counters: CycleCounters::default() }
    }

    /// A turn begins.
    #[inline]
    pub fn begin(&mut self) {
        if !self.running {
            self.last = (self.read)();
        }
    }

    /// A stage ends that found `work` things to do.
    #[inline]
    pub fn lap(&mut self, stage: Stage, work: usize) {
        if work == 0 {
            return;
        }
        let now = (self.read)();
        let spent = now.wrapping_sub(self.last);
        self.last = now;
        self.counters.busy += spent;
        match stage {
            Stage::Receive => self.counters.receive += spent,
            Stage::Serve => self.counters.serve += spent,
            Stage::Transmit => self.counters.transmit += spent,
            Stage::Flush => self.counters.flush += spent,
        }
    }

    /// A turn ends that found `work` things to do.
    #[inline]
    pub fn end(&mut self, work: usize) {
        self.running = work > 0;
    }

    pub fn counters(&self) -> CycleCounters {
        CycleCounters { elapsed: (self.read)().wrapping_sub(self.origin), ..self.counters }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static CLOCK: Cell<u64> = const { Cell::new(0) };
        static READS: Cell<u64> = const { Cell::new(0) };
    }

    fn read() -> u64 {
        READS.set(READS.get() + 1);
        CLOCK.get()
    }

    fn pass(cycles: u64) {
        CLOCK.set(CLOCK.get() + cycles);
    }

    #[test]
    fn stages_with_work_get_their_cycles_and_empty_turns_get_none() {
        let mut meter = Meter::new(read);
        for work in [0, 1] {
            meter.begin();
            pass(100);
            meter.lap(Stage::Receive, work);
            pass(20);
            meter.lap(Stage::Serve, 0);
            pass(30);
            meter.lap(Stage::Transmit, work);
            pass(5);
            meter.lap(Stage::Flush, work);
            meter.end(work);
        }
        let expected = CycleCounters { elapsed: 310, busy: 155, receive: 100, serve: 0, transmit: 50, flush: 5 };
        assert_eq!(meter.counters(), expected);
    }

    #[test]
    fn between_two_busy_turns_the_meter_runs_and_before_a_busy_one_it_does_not() {
        let mut meter = Meter::new(read);
        let mut turn = |before: u64, work: usize| {
            pass(before);
            meter.begin();
            pass(10);
            meter.lap(Stage::Serve, work);
            meter.end(work);
            meter.counters().busy
        };
        assert_eq!(turn(1000, 1), 10);
        assert_eq!(turn(7, 1), 27);
        assert_eq!(turn(7, 0), 27);
        assert_eq!(turn(1000, 1), 37);
    }

    #[test]
    fn an_empty_turn_costs_one_reading() {
        let mut meter = Meter::new(read);
        let before = READS.get();
        meter.begin();
        meter.lap(Stage::Receive, 0);
        meter.lap(Stage::Flush, 0);
        meter.end(0);
        assert_eq!(READS.get() - before, 1);
    }
}

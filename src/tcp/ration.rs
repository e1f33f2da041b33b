//! How many strangers a turn answers: SYNs that ask for a cookie, and segments of no connection.
//!
//! An answer costs more than it takes to ask for it, most of all where sending is a system call. Beside connections that have work, it takes
//! their time; where none has, a turn that answered all would leave unread what comes meanwhile, text and ACKs of connections among it:
//! they fall silent, so the next turn answers all, too. A turn of few is short where there is nothing else to do, so hardly fewer are
//! answered in a second. Read first: RFC 4987 section 3.6. Not here: who waits, and who is refused (`syn_queue`, `connection::Shared`).

/// Of each kind; a sixteenth of what a turn may send.
pub(crate) const PER_TURN: usize = 4;
/// Once some were refused: nobody's answer is worth a connection's then.
pub(crate) const PER_TURN_FLOODED: usize = 1;

/// Of one kind, in this turn.
pub(crate) struct Ration {
    left: usize,
    flooded: bool,
}

impl Ration {
    pub fn new() -> Ration {
        Ration { left: PER_TURN, flooded: false }
    }

    pub fn begin_turn(&mut self) {
        self.left = if std::mem::take(&mut self.flooded) { PER_TURN_FLOODED } else { PER_TURN };
    }

    /// Somebody was refused, as too many wait.
    pub fn refused(&mut self) {
        self.flooded = true;
    }

    pub fn is_left(&self) -> bool {
        self.left > 0
    }

    pub fn take(&mut self) {
        self.left -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(ration: &mut Ration) -> usize {
        std::iter::from_fn(|| ration.is_left().then(|| ration.take())).count()
    }

    #[test]
    fn a_turn_after_a_refusal_has_less() {
        let mut ration = Ration::new();
        assert_eq!((taken(&mut ration), taken(&mut ration)), (PER_TURN, 0));
        ration.refused();
        ration.refused();
        ration.begin_turn();
        assert_eq!(taken(&mut ration), PER_TURN_FLOODED);
        ration.begin_turn();
        assert_eq!(taken(&mut ration), PER_TURN);
    }
}

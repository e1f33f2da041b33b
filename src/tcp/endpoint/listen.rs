//! Listening ports: the way from a SYN to a connection, and what bounds it.
//!
//! Read first: RFC 9293 sections 3.10.7.1 and 3.10.7.2, RFC 4987, RFC 6191. Bounds, each with its answer: half-open connections of a
//! listener (a SYN cookie, or the oldest gives way), accepted ones that nobody polled (the last ACK is dropped), those of one remote
//! and of the endpoint (the SYN or the last ACK is dropped).

use super::*;
use crate::tcp::ListenError;
use crate::wire::tcp::Flags;

impl Endpoint {
    /// Accepts connections to `port` at any local address that nobody listens at with `listen_at`.
    pub fn listen(&mut self, port: u16) -> Result<(), ListenError> {
        self.add_listener(None, port)
    }

    /// Accepts connections to one local address and port (RFC 9293 section 3.9.1.1, MUST-43).
    pub fn listen_at(&mut self, local: SocketAddr) -> Result<(), ListenError> {
        if !is_host(local.ip()) {
            return Err(ListenError::InvalidAddress);
        }
        self.add_listener(Some(local.ip()), local.port())
    }

    fn add_listener(&mut self, address: Option<IpAddr>, port: u16) -> Result<(), ListenError> {
        if port == 0 {
            return Err(ListenError::InvalidPort);
        }
        if self.shared.listeners.iter().any(|listener| (listener.address, listener.port) == (address, port)) {
            return Err(ListenError::InUse);
        }
        if self.shared.listeners.len() >= self.shared.options.listeners_max {
            return Err(ListenError::TooMany);
        }
        let id = ListenerId(self.next_listener);
        self.next_listener = self.next_listener.saturating_add(1);
        self.shared.listeners.push(Listener { id, address, port, half_open: 0, accept_pending: 0, waiting: VecDeque::new() });
        Ok(())
    }

    /// Ends `listen`: half-open connections are reset, accepted ones stay. `false`: it was not listened on.
    pub fn unlisten(&mut self, port: u16) -> bool {
        self.remove_listener(None, port)
    }

    /// Ends `listen_at`, likewise.
    pub fn unlisten_at(&mut self, local: SocketAddr) -> bool {
        self.remove_listener(Some(local.ip()), local.port())
    }

    fn remove_listener(&mut self, address: Option<IpAddr>, port: u16) -> bool {
        let is_meant = |listener: &Listener| (listener.address, listener.port) == (address, port);
        let Some(at) = self.shared.listeners.iter().position(is_meant) else { return false };
        let id = self.shared.listeners[at].id;
        for index in 0..self.slots.len() {
            if let Some(connection) = self.slots[index].connection.as_mut().filter(|c| c.half_open && c.listener == Some(id)) {
                connection.reset(&mut self.shared);
                self.settle(index as u32);
            }
        }
        self.shared.listeners.swap_remove(at);
        true
    }

    /// RFC 9293 section 3.10.7.4, RFC 6191: a SYN that is clearly newer ends a TIME-WAIT.
    ///
    /// Gives the least initial sequence number of what takes its place. Where there is none for the SYN, TIME-WAIT stays.
    pub(super) fn time_wait_gives_way(&mut self, index: u32, repr: &Repr) -> Option<SeqNumber> {
        let connection = self.slots[index as usize].connection.as_mut()?;
        if !connection.may_be_replaced_by(repr, self.shared.options.timestamps) {
            return None;
        }
        let tuple = connection.tuple;
        let listener = self.shared.listener_for(&tuple)?;
        // Its own place in the table is one.
        if !self.remote_has_place(tuple.remote_ip) || !self.make_half_open_room(listener) {
            return None;
        }
        let connection = self.slots[index as usize].connection.as_mut()?;
        let iss_min = connection.successor_iss();
        self.shared.counters.time_wait_recycled += 1;
        connection.leave_time_wait(&mut self.shared);
        self.settle(index);
        Some(iss_min)
    }

    /// RFC 9293 sections 3.10.7.1 and 3.10.7.2: CLOSED and LISTEN.
    /// `iss_min`: what the tuple's TIME-WAIT has left.
    pub(super) fn handle_without_connection(
        &mut self,
        now: Instant,
        tuple: FourTuple,
        repr: &Repr,
        packet: RxPacket,
        iss_min: Option<SeqNumber>,
    ) {
        if repr.flags.contains(Flags::RST) {
            return;
        }
        let Some(listener) = self.shared.listener_for(&tuple) else {
            return self.shared.reset(&tuple, repr, packet.len());
        };
        if repr.flags.contains(Flags::ACK) {
            return match self.cookies.may_be_answered(now) {
                true => self.handle_cookie(now, listener, tuple, repr, packet),
                false => self.shared.reset(&tuple, repr, packet.len()),
            };
        }
        // RFC 9293 section 3.10.7.2, fourth step: neither ACK nor SYN: dropped. SYN with FIN is nobody's (Linux: dropped).
        if !repr.flags.contains(Flags::SYN) || repr.flags.contains(Flags::FIN) {
            return;
        }
        if !self.has_place_for(&tuple) {
            return;
        }
        // A cookie could not keep the number (Linux: none where tcp_tw_isn is set).
        if iss_min.is_none() && self.is_half_open_full(listener) && self.shared.options.syn_cookies {
            return self.ask_for_cookie(now, &tuple, repr);
        }
        if !self.make_half_open_room(listener) {
            return;
        }
        let (iss, timestamp_offset) = self.initial_sequence(now, &tuple);
        let iss = iss_min.filter(|least| iss.distance(*least) < 0).unwrap_or(iss);
        let index = self
            .admit(listener, tuple, |id, shared| Connection::open_passive(now, id, tuple, iss, timestamp_offset, shared, repr));
        self.note_half_open(listener, ConnectionId { index, generation: self.slots[index as usize].generation });
        self.settle(index);
    }

    /// The limits that no cookie gets around: connections of one remote, and of the endpoint.
    fn has_place_for(&mut self, tuple: &FourTuple) -> bool {
        if !self.remote_has_place(tuple.remote_ip) {
            return false;
        }
        if !self.make_place() {
            self.shared.counters.listen_drops += 1;
            return false;
        }
        true
    }

    fn remote_has_place(&mut self, ip: IpAddr) -> bool {
        let room = self.remotes.connections(ip) < self.shared.options.connections_per_remote_max;
        self.shared.counters.remote_drops += u64::from(!room);
        room
    }

    /// Half-open connections take none: anybody can make them in another's name, and each listener has its maximum of them (RFC 4987
    /// section 3).
    pub(super) fn places_taken(&self) -> usize {
        let half_open: usize = self.shared.listeners.iter().map(|listener| listener.half_open).sum();
        self.table.len() - half_open
    }

    /// A half-open connection into the tables.
    fn admit(
        &mut self,
        listener: ListenerId,
        tuple: FourTuple,
        make: impl FnOnce(ConnectionId, &mut Shared) -> Connection,
    ) -> u32 {
        if let Some(of) = self.shared.listener(listener) {
            of.half_open += 1;
        }
        self.shared.counters.passive_opens += 1;
        self.insert(tuple, |id, shared| {
            let mut connection = make(id, shared);
            (connection.listener, connection.half_open) = (Some(listener), true);
            connection
        })
    }

    /// The last part of a handshake, unless its remote or the endpoint has as many connections as it may (as with a full accept queue: it
    /// may come again). Half-open connections do not count, for anybody can make them in another's name, and so keep that one out.
    pub(super) fn may_establish(&mut self, index: u32, repr: &Repr) -> bool {
        let Some(connection) = &self.slots[index as usize].connection else { return false };
        let completes = connection.state == State::SynReceived
            && connection.half_open
            && repr.flags.contains(Flags::ACK)
            && !repr.flags.contains(Flags::RST);
        let tuple = connection.tuple;
        !completes || self.has_place_for(&tuple)
    }

    /// A SYN that came twice may have a half-open connection besides the cookie that its peer has taken and answers now: that one gives way.
    pub(super) fn cookie_takes_over(&mut self, now: Instant, index: u32, repr: &Repr) -> bool {
        let Endpoint { slots, shared, cookies, .. } = self;
        let Some(connection) = slots[index as usize].connection.as_mut().filter(|c| c.half_open) else { return false };
        let is_ack = repr.flags.contains(Flags::ACK) && !repr.flags.contains(Flags::SYN) && !repr.flags.contains(Flags::RST);
        let may_be = is_ack && cookies.may_be_answered(now) && connection.is_answered_elsewhere(repr);
        if !may_be || cookies.syn_of(now, &connection.tuple, repr, &shared.options).is_none() {
            return false;
        }
        connection.give_up_half_open(shared);
        self.settle(index);
        true
    }

    /// A SYN that comes again and asks for less than was granted opens anew: an ACK of what the first was answered with is not believed.
    pub(super) fn begins_anew(&mut self, index: u32, repr: &Repr) -> bool {
        let Endpoint { slots, shared, .. } = self;
        let half_open = slots[index as usize].connection.as_mut().filter(|c| c.half_open && c.is_asked_for_less(repr));
        let Some(connection) = half_open else { return false };
        connection.give_up_half_open(shared);
        self.settle(index);
        true
    }

    /// A connection that a peer opened counts among its remote's from the end of its handshake on.
    pub(super) fn join_remote(&mut self, index: u32) {
        if let Some(connection) = &mut self.slots[index as usize].connection
            && connection.is_accepted()
            && !std::mem::replace(&mut connection.counted_at_remote, true)
        {
            self.remotes.add(connection.tuple.remote_ip);
        }
    }

    /// The connection counts no longer among its remote's.
    pub(super) fn leave_remote(&mut self, index: u32) {
        if let Some(connection) = &mut self.slots[index as usize].connection
            && std::mem::take(&mut connection.counted_at_remote)
        {
            self.remotes.remove(connection.tuple.remote_ip);
        }
    }

    fn is_half_open_full(&mut self, listener: ListenerId) -> bool {
        let half_open_max = self.shared.options.syn_received_max;
        self.shared.listener(listener).is_some_and(|listener| listener.half_open >= half_open_max)
    }

    /// The SYN waits for its turn.
    fn ask_for_cookie(&mut self, now: Instant, tuple: &FourTuple, syn: &Repr) {
        let taken = self.syns.push(now, tuple, syn, self.shared.options.syns_waiting_max);
        self.shared.waiting_apart += usize::from(taken);
        self.shared.counters.syn_queue_drops += u64::from(!taken);
    }

    /// Everything of this turn was received, or sent.
    pub(super) fn begin_to_send(&mut self) {
        self.syns.begin_turn();
        (self.resets_left, self.resets_late) = (PER_TURN, !self.shared.resets.is_empty());
    }

    /// What needs no connection's turn: first what connections had to say at once, then what strangers asked for. `false`: there is none,
    /// or enough of those were answered in this turn.
    #[inline(never)]
    pub(super) fn transmit_apart(&mut self, now: Instant, limits: &TransmitLimits, out: &mut Transmit) -> bool {
        let sent = self.transmit_reply(out) || self.transmit_cookie(now, limits, out) || self.transmit_reset(out);
        self.shared.waiting_apart -= usize::from(sent);
        sent
    }

    fn transmit_reply(&mut self, out: &mut Transmit) -> bool {
        let Some(reply) = self.shared.replies.pop_front() else { return false };
        out.seal(&reply.tuple, &reply.repr, 0);
        self.shared.counters.out_segs += 1;
        true
    }

    fn transmit_reset(&mut self, out: &mut Transmit) -> bool {
        if self.resets_left == 0 {
            return false;
        }
        let Some(reset) = self.shared.resets.pop_front() else { return false };
        self.resets_left -= 1;
        out.seal(&reset.tuple, &reset.repr, 0);
        self.shared.counters.out_segs += 1;
        true
    }

    /// The SYN-ACK of the next one that waits.
    fn transmit_cookie(&mut self, now: Instant, limits: &TransmitLimits, out: &mut Transmit) -> bool {
        let Some(waiting) = self.syns.pop() else { return false };
        let (_, timestamp_offset) = self.initial_sequence(now, &waiting.tuple);
        let timestamp = (now.millis() as u32).wrapping_add(timestamp_offset);
        let mut answer = self.cookies.answer(now, &waiting.tuple, &waiting.syn, &self.shared.options, timestamp);
        answer.options.mss = Some(limits.mtu.saturating_sub(waiting.tuple.headers_len()));
        out.seal(&waiting.tuple, &answer, 0);
        let counters = &mut self.shared.counters;
        (counters.out_segs, counters.syncookies_sent) = (counters.out_segs + 1, counters.syncookies_sent + 1);
        true
    }

    /// An ACK that may be the last part of a handshake of which only a cookie is left (RFC 4987 section 3.6).
    fn handle_cookie(&mut self, now: Instant, listener: ListenerId, tuple: FourTuple, repr: &Repr, packet: RxPacket) {
        let syn = self.cookies.syn_of(now, &tuple, repr, &self.shared.options);
        let Some(syn) = syn.filter(|_| !repr.flags.contains(Flags::SYN)) else {
            self.shared.counters.syncookies_failed += 1;
            // Text, a FIN or an ACK of a SYN-ACK that came twice may follow first text that was lost with the handshake's ACK: when the peer
            // repeats that, it gets in. A reset would end what it takes for established (RFC 9293 section 3.10.7.2 asks for one).
            if !self.cookies.may_be_followed(now, &tuple, repr) {
                self.shared.reset(&tuple, repr, packet.len());
            }
            return;
        };
        if !self.has_place_for(&tuple) {
            return;
        }
        let accept_queue_max = self.shared.options.accept_queue_max;
        if self.shared.listener(listener).is_none_or(|listener| listener.accept_pending >= accept_queue_max) {
            // The peer's data bring another ACK when there may be room.
            self.shared.counters.listen_overflows += 1;
            return;
        }
        self.shared.counters.syncookies_recv += 1;
        let (_, timestamp_offset) = self.initial_sequence(now, &tuple);
        let iss = repr.ack - 1;
        let index = self
            .admit(listener, tuple, |id, shared| Connection::open_cookie(now, id, tuple, iss, timestamp_offset, shared, &syn));
        if let Some(connection) = &mut self.slots[index as usize].connection {
            connection.handle_segment(now, &mut self.shared, repr, packet);
            if connection.state == State::SynReceived {
                // Not acceptable after all: nothing would ever end it.
                connection.give_up_half_open(&mut self.shared);
            }
        }
        self.join_remote(index);
        self.settle(index);
    }

    /// Room for one more half-open connection of a listener. At the maximum the oldest gives way (RFC 4987 section 3.4): an
    /// honest peer's handshake is done within a round trip, a forged one would keep its place until the retries are over, and
    /// a few of those a second would keep everybody out. `false`: there is none that could.
    fn make_half_open_room(&mut self, listener: ListenerId) -> bool {
        let Endpoint { slots, shared, .. } = self;
        let half_open_max = shared.options.syn_received_max;
        let Some(listener) = shared.listener(listener) else { return false };
        if listener.half_open < half_open_max {
            return true;
        }
        while let Some(oldest) = listener.waiting.pop_front() {
            if !is_half_open(slots, oldest) {
                continue;
            }
            if let Some(connection) = find(slots, oldest) {
                shared.counters.half_open_evicted += 1;
                connection.give_up_half_open(shared);
                self.settle(oldest.index);
                return true;
            }
        }
        self.shared.counters.listen_drops += 1;
        false
    }

    fn note_half_open(&mut self, listener: ListenerId, id: ConnectionId) {
        let Endpoint { slots, shared, .. } = self;
        let half_open_max = shared.options.syn_received_max;
        let Some(listener) = shared.listener(listener) else { return };
        while listener.waiting.front().is_some_and(|oldest| !is_half_open(slots, *oldest)) {
            listener.waiting.pop_front();
        }
        if listener.waiting.len() >= 2 * half_open_max {
            // At most half of them are still half-open, so this comes once in that many handshakes.
            listener.waiting.retain(|id| is_half_open(slots, *id));
        }
        listener.waiting.push_back(id);
    }
}

fn is_half_open(slots: &[Slot], id: ConnectionId) -> bool {
    let slot = slots.get(id.index as usize).filter(|slot| slot.generation == id.generation);
    slot.and_then(|slot| slot.connection.as_ref()).is_some_and(|connection| connection.half_open)
}

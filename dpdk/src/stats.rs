//! Counters: the queues' own (plain integers, copied out by the queue's owner) and the device's.

/// A receive queue's counters since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RxCounters {
    /// Packets received.
    pub packets: u64,
    /// Polls that gave at least one packet.
    pub bursts: u64,
    /// Polls that gave none.
    pub empty_polls: u64,
}

/// A transmit queue's counters since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TxCounters {
    /// Chains the device took.
    pub chains: u64,
    /// Segments of these chains, headers' included.
    pub segments: u64,
    /// Calls to the driver that took at least one chain.
    pub bursts: u64,
    /// Calls to the driver that left chains in the backlog: its ring was full.
    pub descriptors_full: u64,
    /// Chains the driver's prepare step refused; they were released.
    pub refused_by_prepare: u64,
    /// Chains refused for want of a buffer or of backlog.
    pub refused_for_room: u64,
    /// Chains refused for what they are (limits, offloads).
    pub refused_for_shape: u64,
    /// Payload bytes queued by reference.
    pub payload_bytes_referenced: u64,
    /// Payload bytes copied into buffers; 0 as long as only `push` is used.
    pub payload_bytes_copied: u64,
}

/// The device's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Packets received.
    pub ipackets: u64,
    /// Packets sent.
    pub opackets: u64,
    /// Bytes received.
    pub ibytes: u64,
    /// Bytes sent.
    pub obytes: u64,
    /// Packets dropped because no receive descriptor was free.
    pub imissed: u64,
    /// Packets received with errors.
    pub ierrors: u64,
    /// Packets that could not be sent.
    pub oerrors: u64,
    /// Packets lost because the receive pool was empty.
    pub rx_nombuf: u64,
}

/// The link's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The link is up.
    pub up: bool,
    /// Mbit/s; `u32::MAX` when unknown.
    pub speed_mbit: u32,
    /// Full duplex.
    pub full_duplex: bool,
}

//! A receive queue: bursts of owned buffers, and sleeping until there are some.
//!
//! To sleep without losing a packet: poll until empty, [`RxQueue::arm_interrupt`], poll once more, wait (epoll, level
//! triggered) on [`RxQueue::event_fd`] and whatever else may wake the core, [`RxQueue::disarm_interrupt`], poll.
//! net_tap's driver may have signals sent to its process (`tap`), so the wait may end early with EINTR, and right after
//! waking a poll may still come back empty; the descriptor stays readable, so the next wait ends at once.

use std::{
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::Arc,
};

use dpdk_sys as sys;

use crate::{
    mbuf::Mbuf,
    port::OpenPort,
    stats::{Link, RxCounters},
};

/// Packets per [`RxQueue::receive`] at most.
pub const RX_BURST: usize = 64;

/// The port has no receive interrupts: poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the port has no receive interrupts")]
pub struct InterruptUnsupported;

enum Wake {
    None,
    /// The descriptor is readable as long as packets wait; there is nothing to arm.
    Level(i32),
    /// DPDK's edge-triggered registration in an epoll instance of our own, which can itself be waited on.
    Armed(OwnedFd),
}

/// One receive queue. `Send`, not `Sync`: one core polls it.
pub struct RxQueue {
    port: Arc<OpenPort>,
    queue: u16,
    wake: Wake,
    counters: RxCounters,
    /// `&self` methods are harmless, but two threads must not poll: keep it off `Sync`.
    _not_sync: std::marker::PhantomData<std::cell::Cell<()>>,
}

impl RxQueue {
    pub(crate) fn new(port: Arc<OpenPort>, queue: u16) -> RxQueue {
        let wake = if port.interrupts_configured { Wake::find(&port, queue) } else { Wake::None };
        RxQueue { port, queue, wake, counters: RxCounters::default(), _not_sync: std::marker::PhantomData }
    }

    /// Appends up to [`RX_BURST`] received packets to `out` and returns how many. Does not allocate as long as `out`
    /// has room for them.
    #[inline]
    pub fn receive(&mut self, out: &mut Vec<Mbuf>) -> usize {
        out.reserve(RX_BURST);
        let spare = out.spare_capacity_mut().as_mut_ptr().cast::<*mut sys::rte_mbuf>();
        // SAFETY: room for RX_BURST pointers was reserved and Mbuf is a transparent non-null pointer; the queue is
        // set up and this value is the only one polling it (&mut self, not Clone). The packets become ours.
        let count = unsafe {
            let count = sys::nfsplice_rx_burst(self.port.id, self.queue, spare, RX_BURST as u16);
            let count = usize::from(count);
            out.set_len(out.len() + count);
            count
        };
        if count == 0 {
            self.counters.empty_polls += 1;
        } else {
            self.counters.bursts += 1;
            self.counters.packets += count as u64;
        }
        count
    }

    /// The state of the port's link, without waiting for it; `None`: the driver cannot tell. Asks the device, a virtual one by a system
    /// call: not for every poll.
    pub fn link(&self) -> Option<Link> {
        self.port.link()
    }

    /// This queue's number.
    pub fn index(&self) -> u16 {
        self.queue
    }

    /// Buffers of the queue's pool that are with the program or the driver. Slow; for statistics and tests.
    pub fn buffers_in_use(&self) -> u32 {
        self.port.rx_pools[usize::from(self.queue)].in_use()
    }

    /// Counters since the queue was made.
    pub fn counters(&self) -> RxCounters {
        self.counters
    }

    /// Readable (level-triggered) when packets may be waiting; None when the port has no receive interrupts.
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.wake {
            Wake::None => None,
            // SAFETY: the driver's descriptor, open until the port is closed, which this queue prevents.
            Wake::Level(fd) => Some(unsafe { BorrowedFd::borrow_raw(*fd) }),
            Wake::Armed(fd) => Some(std::os::fd::AsFd::as_fd(fd)),
        }
    }

    /// Asks the device to signal the next packet. Poll once more after this and before waiting.
    pub fn arm_interrupt(&mut self) -> Result<(), InterruptUnsupported> {
        match &self.wake {
            Wake::None => Err(InterruptUnsupported),
            Wake::Level(_) => Ok(()),
            Wake::Armed(_) => {
                // SAFETY: a started port and one of its queues.
                let result = unsafe { sys::rte_eth_dev_rx_intr_enable(self.port.id, self.queue) };
                if result == 0 { Ok(()) } else { Err(InterruptUnsupported) }
            }
        }
    }

    /// Stops the signals and clears what is pending. Poll after this.
    pub fn disarm_interrupt(&mut self) {
        if let Wake::Armed(fd) = &self.wake {
            let mut event = sys::rte_epoll_event::default();
            // SAFETY: a started port and one of its queues; room for the one event asked for, no waiting.
            unsafe {
                sys::rte_eth_dev_rx_intr_disable(self.port.id, self.queue);
                sys::rte_epoll_wait_interruptible(fd.as_raw_fd(), &mut event, 1, 0);
            }
        }
    }
}

impl Wake {
    fn find(port: &OpenPort, queue: u16) -> Wake {
        // SAFETY: a started port and one of its queues; the driver answers ENOTSUP when it cannot.
        let armable = unsafe { sys::rte_eth_dev_rx_intr_enable(port.id, queue) } == 0;
        if armable {
            // SAFETY: as above.
            unsafe { sys::rte_eth_dev_rx_intr_disable(port.id, queue) };
        } else if port.driver == "net_tap" {
            // SAFETY: as above. The driver lists the queue's own descriptor and has nothing to arm.
            let fd = unsafe { sys::rte_eth_dev_rx_intr_ctl_q_get_fd(port.id, queue) };
            return if fd >= 0 { Wake::Level(fd) } else { Wake::None };
        } else {
            return Wake::None;
        }
        // SAFETY: makes a descriptor, owned from here on when valid.
        let raw = unsafe { sys::nfsplice_epoll_create() };
        if raw < 0 {
            return Wake::None;
        }
        // SAFETY: just made, nobody else has it.
        let epoll = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: registers the queue's descriptor in `epoll`; removed in Drop before it is closed.
        let added =
            unsafe { sys::rte_eth_dev_rx_intr_ctl_q(port.id, queue, raw, sys::RTE_INTR_EVENT_ADD as i32, std::ptr::null_mut()) };
        if added == 0 { Wake::Armed(epoll) } else { Wake::None }
    }
}

/// Whether queues of this port can be slept on; the first stands for all.
pub(crate) fn interrupts_work(port: &OpenPort) -> bool {
    // SAFETY: a started port and its first queue; the driver answers ENOTSUP when it cannot.
    if unsafe { sys::rte_eth_dev_rx_intr_enable(port.id, 0) } == 0 {
        // SAFETY: as above.
        unsafe { sys::rte_eth_dev_rx_intr_disable(port.id, 0) };
        return true;
    }
    // SAFETY: as above.
    port.driver == "net_tap" && unsafe { sys::rte_eth_dev_rx_intr_ctl_q_get_fd(port.id, 0) } >= 0
}

impl Drop for RxQueue {
    fn drop(&mut self) {
        if let Wake::Armed(fd) = &self.wake {
            // SAFETY: undoes the registration made in `Wake::find`; the port is still open.
            unsafe {
                sys::rte_eth_dev_rx_intr_ctl_q(
                    self.port.id,
                    self.queue,
                    fd.as_raw_fd(),
                    sys::RTE_INTR_EVENT_DEL as i32,
                    std::ptr::null_mut(),
                )
            };
        }
    }
}

impl std::fmt::Debug for RxQueue {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RxQueue").field("port", &self.port.name).field("queue", &self.queue).finish()
    }
}

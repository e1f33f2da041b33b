//! Groups, and telling routers and switches about them.
//!
//! Read first: RFC 3810 sections 5 and 6 (a listener's part), 8.2 (routers of version 1), RFC 3590 (sources), RFC 4541 (switches
//! that forward only to who has reported).
//! The groups are the solicited-node groups of our addresses, plus all-nodes, which is never reported (RFC 3810 section 6).

use std::net::Ipv6Addr;

use smallvec::SmallVec;

use super::Ipv6;
use crate::time::{Duration, Instant};
use crate::wire::ipv6::{
    self, ALL_MLDV2_ROUTERS, ALL_NODES, ALL_ROUTERS, extension, is_link_local, multicast_mac, router_alert_header, solicited_node,
};
use crate::wire::mld::{self, Query, REPORT_GROUPS_MAX, Record};
use crate::wire::protocol;

/// RFC 3810 section 9.1: each change is told so many times, so that one may be lost; 9.11: this far apart.
const ROBUSTNESS: u32 = 2;
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// RFC 3810 section 9.12: how long after a query of version 1 it is answered in version 1.
const OLD_QUERIER: Duration = Duration::from_secs(260);

#[derive(Default)]
pub(super) struct Listener {
    /// The next report of all groups because of a change, and how many are left.
    changes: Option<(Instant, u32)>,
    /// When a query is answered.
    answer: Option<Instant>,
    /// Groups left, each to be told so many times more.
    left: SmallVec<[(Ipv6Addr, u32); 2]>,
    /// Until then there is a router that knows only version 1.
    version_1_until: Option<Instant>,
}

impl Listener {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.changes.map(|(at, _)| at), self.answer].into_iter().flatten().min()
    }
}

impl Ipv6 {
    /// Whether packets to this group are for us.
    pub(super) fn is_member(&self, group: Ipv6Addr) -> bool {
        group == ALL_NODES || self.addresses.iter().any(|local| solicited_node(local.address) == group)
    }

    /// To be called after the address that wants it has been added. `at`: when its duplicate detection begins; a switch that
    /// snoops would keep the answers away if it had not heard of the group before (RFC 4862 section 5.4.2).
    pub(super) fn join(&mut self, at: Instant, group: Ipv6Addr) {
        self.listener.left.retain(|(left, _)| *left != group);
        let at = self.listener.changes.map_or(at, |(earlier, _)| earlier.min(at));
        self.listener.changes = Some((at, ROBUSTNESS));
    }

    /// To be called after the address that wanted it has gone.
    pub(super) fn leave(&mut self, now: Instant, group: Ipv6Addr) {
        if !self.is_member(group) && self.listener.left.len() < self.options.addresses_max {
            self.listener.left.push((group, ROBUSTNESS));
            self.listener.changes = Some((now, ROBUSTNESS));
        }
    }

    pub(super) fn report_again(&mut self, now: Instant) {
        self.listener.changes = Some((now, ROBUSTNESS));
    }

    pub(super) fn receive_query(&mut self, now: Instant, query: Query) {
        if self.options.follows {
            return;
        }
        self.counters.mld_queries_in += 1;
        if query.version_1 {
            self.listener.version_1_until = Some(now + OLD_QUERIER);
        }
        if query.group.is_some_and(|group| group == ALL_NODES || !self.is_member(group)) {
            return;
        }
        // RFC 3810 section 6.2: after a random delay; one answer about all groups serves every query that waits for one.
        let at = now + self.draw(Duration::from_millis(query.response_ms_max.into()));
        self.listener.answer = Some(self.listener.answer.map_or(at, |earlier| earlier.min(at)));
    }

    pub(super) fn age_listener(&mut self, now: Instant) {
        if let Some((at, left)) = self.listener.changes.filter(|(at, _)| *at <= now) {
            self.listener.changes = (left > 1).then_some((at.max(now) + REPORT_INTERVAL, left - 1));
            self.report(now, Record::Joined, &self.groups());
            let gone: SmallVec<[Ipv6Addr; 8]> = self.listener.left.iter().map(|(group, _)| *group).collect();
            self.listener.left.iter_mut().for_each(|(_, left)| *left -= 1);
            self.listener.left.retain(|(_, left)| *left > 0);
            self.report(now, Record::Left, &gone);
        }
        if self.listener.answer.is_some_and(|at| at <= now) {
            self.listener.answer = None;
            self.report(now, Record::Current, &self.groups());
        }
    }

    /// The groups that are reported, each once.
    fn groups(&self) -> SmallVec<[Ipv6Addr; 8]> {
        let mut groups: SmallVec<[Ipv6Addr; 8]> = SmallVec::new();
        for local in &self.addresses {
            let group = solicited_node(local.address);
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        groups
    }

    fn report(&mut self, now: Instant, record: Record, groups: &[Ipv6Addr]) {
        // RFC 3590 section 4: from a link-local address, or from none as long as there is none.
        let assigned = self.addresses.iter().filter(|local| local.is_assigned()).map(|local| local.address);
        let src = assigned.into_iter().find(|address| is_link_local(*address)).unwrap_or(Ipv6Addr::UNSPECIFIED);
        if self.listener.version_1_until.is_some_and(|until| now < until) {
            for group in groups {
                let dst = if record == Record::Left { ALL_ROUTERS } else { *group };
                self.queue_report(src, dst, &mld::report_v1(src, dst, record, *group));
            }
            return;
        }
        for groups in groups.chunks(REPORT_GROUPS_MAX) {
            self.queue_report(src, ALL_MLDV2_ROUTERS, &mld::report(src, ALL_MLDV2_ROUTERS, record, groups));
        }
    }

    fn queue_report(&mut self, src: Ipv6Addr, dst: Ipv6Addr, message: &[u8]) {
        let options = router_alert_header(protocol::ICMPV6);
        let header = ipv6::Repr {
            src,
            dst,
            next_header: extension::HOP_BY_HOP,
            traffic_class: 0,
            flow_label: 0,
            // RFC 3810 section 5.
            hop_limit: 1,
            payload_len: (options.len() + message.len()) as u16,
        };
        self.counters.mld_reports_out += 1;
        self.queue_own(multicast_mac(dst), &[&header.emit(), &options, message], false);
    }
}

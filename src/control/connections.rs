//! `nfsplice stats --connections`: one line for each TCP connection, with the columns of `ss -ti`, as a table or as JSON.
//!
//! A core tells its connections piece by piece between turns of its loop; a row is exact for its moment, the whole is not of one moment. Rows go
//! through the stats socket as lines of JSON, as they come, so nobody holds all of them; an empty line is the end.
//!
//! Deliberately not here: where the figures come from (`serve` fills them from `tcp`'s), the socket (`stats.rs`).

use std::fmt::Write as _;
use std::io::{BufRead, Write};

use anyhow::bail;
use serde::{Deserialize, Serialize};

/// One connection. Times in microseconds, rates in bits a second, everything else in bytes or segments, as it says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// As `ss` calls the states of RFC 9293: `ESTAB`, `FIN-WAIT-1`, ...
    pub state: String,
    /// Bytes received and not taken by the server.
    pub recv_q: u64,
    /// Bytes queued and not acknowledged.
    pub send_q: u64,
    /// The server's address and port.
    pub local: String,
    /// The client's.
    pub peer: String,
    /// The engine core that has it, by its place in cores.engine.
    pub core: usize,
    /// Options in use: ts, sack, wscale:theirs,ours, ecn.
    pub options: String,
    /// Congestion window, segments.
    pub cwnd: u64,
    /// Slow-start threshold, segments; none before the first loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssthresh: Option<u64>,
    /// Smoothed round-trip time; none before the first measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Its mean deviation.
    pub rttvar_us: u64,
    /// The smallest round-trip time seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minrtt_us: Option<u64>,
    /// Retransmission timeout.
    pub rto_us: u64,
    /// How often it was doubled.
    #[serde(default)]
    pub backoff: u32,
    /// What fires next: on (the retransmission timer), probe, reorder, persist, keepalive, timewait (TIME-WAIT or FIN-WAIT-2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timer: Option<String>,
    /// And when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timer_us: Option<u64>,
    /// Congestion control, as in the configuration.
    #[serde(default)]
    pub congestion: String,
    /// Since text was sent, and received.
    #[serde(default)]
    pub lastsnd_us: u64,
    #[serde(default)]
    pub lastrcv_us: u64,
    /// Since anything acceptable came.
    #[serde(default)]
    pub lastack_us: u64,
    /// The network was seen to reorder.
    #[serde(default)]
    pub reordering: bool,
    /// Payload bytes of a full segment.
    pub mss: u32,
    /// The same of the longest that the client has sent, and of what it may send.
    #[serde(default)]
    pub rcvmss: u32,
    #[serde(default)]
    pub advmss: u32,
    /// Bytes of the largest packet that the path is known to take; none: no smaller one than the port's was needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pmtu: Option<u32>,
    /// Segments sent again, and those of them on their way.
    pub retrans: u64,
    #[serde(default)]
    pub retrans_in_flight: u64,
    /// Segments sent and not acknowledged.
    pub unacked: u64,
    /// Segments among them that the peer has told it has.
    pub sacked: u64,
    /// Segments among them that are taken for lost.
    pub lost: u64,
    /// Segments that arrived at the peer, acknowledged or told by SACK.
    pub delivered: u64,
    /// Bytes sent, those sent again among them.
    #[serde(default)]
    pub bytes_sent: u64,
    #[serde(default)]
    pub bytes_retrans: u64,
    /// Bytes acknowledged.
    pub bytes_acked: u64,
    /// Bytes received in order.
    pub bytes_received: u64,
    pub segs_out: u64,
    pub segs_in: u64,
    /// Segments with text.
    #[serde(default)]
    pub data_segs_out: u64,
    #[serde(default)]
    pub data_segs_in: u64,
    /// A congestion window in each round trip; none before the first measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_rate: Option<u64>,
    /// The peer's window, bytes.
    pub snd_wnd: u64,
    /// Ours, bytes.
    pub rcv_wnd: u64,
    /// Bytes received out of order and held.
    pub rcv_ooo: u64,
    /// Sending is spread in time at this rate; none: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pacing_rate: Option<u64>,
}

const HEAD: &str = "state       recv-q    send-q  core  local address:port         peer address:port";

/// Rows as they come from the server, one JSON object a line, onto `out`: as they are, or as a table.
pub fn show(out: &mut dyn Write, rows: &mut dyn BufRead, json: bool) -> anyhow::Result<()> {
    let mut line = String::new();
    if !json {
        writeln!(out, "{HEAD}")?;
    }
    loop {
        line.clear();
        if rows.read_line(&mut line)? == 0 {
            bail!("the list is not complete: the server or one of its cores stopped answering");
        }
        if line == "\n" {
            return Ok(out.flush()?);
        }
        if json {
            out.write_all(line.as_bytes())?;
        } else {
            out.write_all(text(&serde_json::from_str(&line)?).as_bytes())?;
        }
    }
}

/// Two lines, as `ss -ti` has them: who, and how it goes. What does not apply is left out.
fn text(row: &Connection) -> String {
    let mut text =
        format!("{:<10} {:>7} {:>9}  {:>4}  {:<26} {}\n    ", row.state, row.recv_q, row.send_q, row.core, row.local, row.peer);
    let words = [&row.options, &row.congestion];
    for word in words.iter().filter(|word| !word.is_empty()) {
        let _ = write!(text, "{word} ");
    }
    let milliseconds = |us: u64| us as f64 / 1000.0;
    let _ = write!(text, "rto:{:.0}", milliseconds(row.rto_us));
    if row.backoff > 0 {
        let _ = write!(text, " backoff:{}", row.backoff);
    }
    if let Some(rtt) = row.rtt_us {
        let _ = write!(text, " rtt:{:.3}/{:.3}", milliseconds(rtt), milliseconds(row.rttvar_us));
    }
    if let Some(least) = row.minrtt_us {
        let _ = write!(text, " minrtt:{:.3}", milliseconds(least));
    }
    let _ = write!(text, " mss:{}", row.mss);
    for (name, mss) in [("rcvmss", row.rcvmss), ("advmss", row.advmss)] {
        if mss > 0 {
            let _ = write!(text, " {name}:{mss}");
        }
    }
    let optional = [("pmtu", row.pmtu.map(u64::from)), ("cwnd", Some(row.cwnd)), ("ssthresh", row.ssthresh)];
    for (name, value) in optional {
        if let Some(value) = value {
            let _ = write!(text, " {name}:{value}");
        }
    }
    let counts = [
        ("bytes_sent", row.bytes_sent),
        ("bytes_retrans", row.bytes_retrans),
        ("bytes_acked", row.bytes_acked),
        ("bytes_received", row.bytes_received),
        ("segs_out", row.segs_out),
        ("segs_in", row.segs_in),
        ("data_segs_out", row.data_segs_out),
        ("data_segs_in", row.data_segs_in),
        ("unacked", row.unacked),
        ("sacked", row.sacked),
        ("lost", row.lost),
        ("delivered", row.delivered),
        ("lastsnd", row.lastsnd_us / 1000),
        ("lastrcv", row.lastrcv_us / 1000),
        ("lastack", row.lastack_us / 1000),
        ("rcv_ooo", row.rcv_ooo),
        ("snd_wnd", row.snd_wnd),
        ("rcv_wnd", row.rcv_wnd),
    ];
    for (name, value) in counts.iter().filter(|(_, value)| *value > 0) {
        let _ = write!(text, " {name}:{value}");
    }
    if row.retrans > 0 {
        let _ = write!(text, " retrans:{}/{}", row.retrans_in_flight, row.retrans);
    }
    if let Some(rate) = row.send_rate {
        let _ = write!(text, " send:{rate}bps");
    }
    if row.reordering {
        text.push_str(" reordering");
    }
    if let (Some(timer), Some(after)) = (&row.timer, row.timer_us) {
        let _ = write!(text, " timer:({timer},{:.0}ms)", milliseconds(after));
    }
    if let Some(rate) = row.pacing_rate {
        let _ = write!(text, " pacing_rate:{rate}bps");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Connection {
        Connection {
            state: "ESTAB".into(),
            send_q: 65_536,
            local: "10.77.0.2:2049".into(),
            peer: "10.77.0.1:700".into(),
            core: 1,
            options: "ts sack wscale:7,6".into(),
            cwnd: 10,
            rtt_us: Some(1500),
            rttvar_us: 250,
            rto_us: 201_500,
            backoff: 1,
            timer: Some("on".into()),
            timer_us: Some(150_000),
            congestion: "cubic".into(),
            lastsnd_us: 51_000,
            reordering: true,
            mss: 1448,
            retrans: 2,
            retrans_in_flight: 1,
            send_rate: Some(77_226_666),
            ..Connection::default()
        }
    }

    #[test]
    fn a_table_has_what_applies_and_json_is_passed_on() {
        let line = serde_json::to_string(&row()).unwrap() + "\n\n";
        let mut out = Vec::new();
        show(&mut out, &mut line.as_bytes(), false).unwrap();
        let table = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "ESTAB            0     65536     1  10.77.0.2:2049             10.77.0.1:700");
        assert_eq!(
            lines[2],
            "    ts sack wscale:7,6 cubic rto:202 backoff:1 rtt:1.500/0.250 mss:1448 cwnd:10 lastsnd:51 retrans:1/2 send:77226666bps reordering timer:(on,150ms)",
        );
        let mut out = Vec::new();
        show(&mut out, &mut line.as_bytes(), true).unwrap();
        assert_eq!(serde_json::from_slice::<Connection>(&out).unwrap(), row());
        assert!(show(&mut Vec::new(), &mut line.trim_end().as_bytes(), true).is_err(), "without its end");
    }
}

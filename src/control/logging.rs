//! The log: lines on stderr, for a terminal or for systemd.
//!
//! Under systemd the journal stamps each line itself, so ours carries no second time, and begins with the priority that
//! sd-daemon(3) defines (`<4>` and so on), which journald turns into its own and strips. The level can change while the server runs.
//! The data path logs nothing per packet or request.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, reload};

use super::config::LogLevel;

/// Where the log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A terminal or a file: with time and level.
    Stderr {
        /// Whether colours are understood.
        colours: bool,
    },
    /// The journal: with a priority instead of both.
    Journal,
}

impl Target {
    /// What this process's stderr is connected to.
    pub fn of_this_process() -> Self {
        use std::io::IsTerminal as _;
        let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
        let stderr = std::fs::metadata("/proc/self/fd/2").map(|meta| (meta.dev(), meta.ino())).ok();
        if is_journal_stream(&stream, stderr) {
            return Self::Journal;
        }
        Self::Stderr { colours: std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }
}

/// systemd.exec(5): `$JOURNAL_STREAM` is `device:inode` of the stream; it must be compared with the descriptor, since it is also
/// inherited by programs whose stderr was redirected.
fn is_journal_stream(variable: &str, stderr: Option<(u64, u64)>) -> bool {
    let stream = variable.split_once(':').and_then(|(dev, ino)| Some((dev.parse().ok()?, ino.parse().ok()?)));
    stream.is_some() && stream == stderr
}

/// Changes the level of a running server's log.
#[derive(Clone)]
pub struct LevelControl(reload::Handle<LevelFilter, Registry>);

impl fmt::Debug for LevelControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LevelControl")
    }
}

impl LevelControl {
    /// From now on, log at `level`.
    pub fn set(&self, level: LogLevel) {
        // Fails only after the subscriber is gone, and then nobody logs.
        let _ = self.0.reload(filter(level));
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Starts the process's log. Only the first call has an effect on where lines go.
pub fn start(level: LogLevel, target: Target) -> LevelControl {
    let (subscriber, control) = subscriber(level, target, std::io::stderr);
    let _ = tracing::subscriber::set_global_default(subscriber);
    control
}

fn subscriber<W>(level: LogLevel, target: Target, writer: W) -> (impl Subscriber + Send + Sync, LevelControl)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (level, handle) = reload::Layer::new(filter(level));
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match target {
        Target::Journal => layer
            .with_ansi(false)
            .event_format(JournalLine(Format::default().without_time().with_level(false).with_target(false)))
            .boxed(),
        Target::Stderr { colours } => layer.with_ansi(colours).with_target(false).boxed(),
    };
    (tracing_subscriber::registry().with(lines.with_filter(level)), LevelControl(handle))
}

/// A line with its syslog priority in front.
struct JournalLine(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for JournalLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        // sd-daemon(3): SD_ERR, SD_WARNING, SD_INFO, SD_DEBUG.
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(ctx, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn log(level: LogLevel, target: Target, body: impl FnOnce(&LevelControl)) -> String {
        let lines = Lines::default();
        let sink = lines.clone();
        let (subscriber, control) = subscriber(level, target, move || sink.clone());
        tracing::subscriber::with_default(subscriber, || body(&control));
        lines.text()
    }

    #[test]
    fn journal_lines_have_a_priority_and_no_time() {
        let text = log(LogLevel::Info, Target::Journal, |_| {
            tracing::warn!(port = 0, "address in use by another station");
            tracing::info!("serving");
            tracing::debug!("not shown");
        });
        assert_eq!(text, "<4>address in use by another station port=0\n<6>serving\n");
    }

    #[test]
    fn terminal_lines_have_time_and_level() {
        let text = log(LogLevel::Info, Target::Stderr { colours: false }, |_| tracing::info!("serving"));
        let (time, rest) = text.trim_end().split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{time}");
        assert_eq!(rest.trim_start(), "INFO serving");
    }

    #[test]
    fn the_level_changes_while_running() {
        let text = log(LogLevel::Warn, Target::Journal, |control| {
            tracing::info!("hidden");
            control.set(LogLevel::Debug);
            tracing::debug!("shown");
            control.set(LogLevel::Error);
            tracing::warn!("hidden again");
        });
        assert_eq!(text, "<7>shown\n");
    }

    #[test]
    fn the_journal_is_recognised_by_its_descriptor() {
        assert!(is_journal_stream("9:1234", Some((9, 1234))));
        assert!(!is_journal_stream("9:1234", Some((9, 1235))), "stderr was redirected");
        assert!(!is_journal_stream("", Some((9, 1234))));
        assert!(!is_journal_stream("9:1234", None));
    }
}

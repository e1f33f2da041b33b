//! Counters: how every layer counts, without a lock, an atomic or an allocation.
//!
//! A layer declares one plain struct of `u64` fields with [`counters!`], owns it on its own core and counts with
//! `self.counters.segments_in += 1`. The core's loop walks the fields from time to time ([`Counters::visit`]) and copies
//! them to where the control plane can read them (`control::metrics`). Counters only grow; a gauge is a level that also falls.
//!
//! Deliberately not here: names with a layer's prefix, summing across cores, formatting. Those belong to the control plane.
//! This room depends on nothing, so that every layer may import it.

/// Whether the values of several moments, or of several cores, may be subtracted or only compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows (wrapping at 2^64) while the server lives.
    Counter,
    /// A level that rises and falls: connections open, pages held.
    Gauge,
}

/// What a field of a counters struct means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The field's own name, without a layer's prefix.
    pub name: &'static str,
    /// The field's doc comment, for people.
    pub help: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
}

/// A struct of counters that can be walked without knowing its type. Implemented by [`counters!`].
pub trait Counters {
    /// Every field in declaration order, counters before gauges; the same for each value of the type.
    fn fields(&self) -> &'static [Field];

    /// Calls `f` with each field's name and value, in the order of [`Counters::fields`]. Allocates nothing.
    fn visit(&self, f: &mut dyn FnMut(&'static str, u64));
}

/// Declares a counters struct: every field is a `pub u64`, starts at 0 and needs a doc comment.
///
/// ```
/// nfsplice::counters! {
///     /// What one core's TCP counts.
///     pub struct TcpCounters {
///         /// Segments received with a good checksum.
///         segments_in,
///         /// Segments dropped because their header was malformed.
///         malformed,
///     }
///     gauges {
///         /// Connections in any state but CLOSED.
///         connections_open,
///     }
/// }
/// let mut counters = TcpCounters::default();
/// counters.segments_in += 1;
/// counters.connections_open = 3;
/// ```
/// The `gauges { .. }` part may be left out.
#[macro_export]
macro_rules! counters {
    (
        $(#[$meta:meta])*
        $vis:vis struct $struct:ident {
            $( $(#[doc = $help:literal])+ $name:ident ),* $(,)?
        }
        $( gauges {
            $( $(#[doc = $gauge_help:literal])+ $gauge:ident ),* $(,)?
        } )?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        $vis struct $struct {
            $( $(#[doc = $help])+ pub $name: u64, )*
            $($( $(#[doc = $gauge_help])+ pub $gauge: u64, )*)?
        }

        impl $crate::counters::Counters for $struct {
            fn fields(&self) -> &'static [$crate::counters::Field] {
                const FIELDS: &[$crate::counters::Field] = &[
                    $( $crate::counters::Field {
                        name: stringify!($name),
                        help: concat!($($help),+).trim_ascii(),
                        kind: $crate::counters::Kind::Counter,
                    }, )*
                    $($( $crate::counters::Field {
                        name: stringify!($gauge),
                        help: concat!($($gauge_help),+).trim_ascii(),
                        kind: $crate::counters::Kind::Gauge,
                    }, )*)?
                ];
                FIELDS
            }

            #[allow(unused_variables, reason = "a struct may have no field")]
            fn visit(&self, f: &mut dyn FnMut(&'static str, u64)) {
                $( f(stringify!($name), self.$name); )*
                $($( f(stringify!($gauge), self.$gauge); )*)?
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    counters! {
        /// A struct with both kinds.
        pub struct Both {
            /// Frames taken from
            /// the port.
            frames_in,
            /// Octets in those frames.
            octets_in,
        }
        gauges {
            /// Frames not yet freed.
            frames_held,
        }
    }

    counters! {
        /// A struct with counters only.
        struct Plain {
            /// Calls answered.
            calls
        }
    }

    fn walk(counters: &dyn Counters) -> Vec<(&'static str, u64)> {
        let mut seen = Vec::new();
        counters.visit(&mut |name, value| seen.push((name, value)));
        seen
    }

    #[test]
    fn visit_gives_every_field_in_the_order_of_fields() {
        let both = Both { frames_in: 3, octets_in: 180, frames_held: 2 };
        assert_eq!(walk(&both), [("frames_in", 3), ("octets_in", 180), ("frames_held", 2)]);
        let names: Vec<_> = both.fields().iter().map(|field| field.name).collect();
        assert_eq!(names, ["frames_in", "octets_in", "frames_held"]);
        assert_eq!(walk(&Plain { calls: 7 }), [("calls", 7)]);
    }

    #[test]
    fn fields_tell_kind_and_doc_comment() {
        let fields = Both::default().fields();
        assert_eq!(fields[0].help, "Frames taken from the port.");
        assert_eq!(fields[0].kind, Kind::Counter);
        assert_eq!(fields[2], Field { name: "frames_held", help: "Frames not yet freed.", kind: Kind::Gauge });
    }
}

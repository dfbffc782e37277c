//! The text format of Prometheus, as far as it is needed.

use std::fmt::Write as _;

use crate::operations::metrics::Kind;

/// The content type of the format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A text that is being written.
#[derive(Debug, Default)]
pub(super) struct Exposition(String);

impl Exposition {
    /// Begins a metric. Its name and meaning are written even if no sample follows.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.0, name }
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// A metric whose samples are being written.
pub(super) struct Family<'e> {
    text: &'e mut String,
    name: &'static str,
}

impl Family<'_> {
    /// Writes one sample.
    pub(super) fn sample(&mut self, labels: &[(&'static str, String)], value: f64) -> &mut Self {
        self.text.push_str(self.name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let opening = if index == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{opening}{label}=\"{}\"", escape(value));
        }
        let closing = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{closing} {value}");
        self
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_follow_their_metric_and_labels_are_escaped() {
        let mut text = Exposition::default();
        text.family("a_total", Kind::Counter, "How many.")
            .sample(&[], 12_345_678_901.0)
            .sample(&[("x", "1".into())], 0.5);
        text.family("b", Kind::Gauge, "None.");
        text.family("c", Kind::Gauge, "Odd.")
            .sample(&[("x", "a\"b\\c\nd".into()), ("y", "ü".into())], f64::NAN);
        assert_eq!(
            text.into_text(),
            "# HELP a_total How many.\n# TYPE a_total counter\na_total 12345678901\na_total{x=\"1\"} 0.5\n\
             # HELP b None.\n# TYPE b gauge\n\
             # HELP c Odd.\n# TYPE c gauge\nc{x=\"a\\\"b\\\\c\\nd\",y=\"ü\"} NaN\n"
        );
    }
}

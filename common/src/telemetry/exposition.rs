//! Prometheus's text format, for what a recorder cannot say: fractions that only grow, and series that go away.

use std::fmt::Write as _;

use super::metric::Metric;

/// A page of metrics as it is written.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// One that goes on after this.
    pub fn after(text: String) -> Self {
        Self(text)
    }

    /// Adds a family: each series with the values of the metric's labels, in their order. Nothing without a series.
    pub fn family<'a, L>(&mut self, metric: &Metric, series: impl IntoIterator<Item = (L, f64)>)
    where
        L: AsRef<[&'a str]>,
    {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return;
        }
        let Metric { name, help, kind, .. } = metric;
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {}", kind.as_str()));
        for (values, value) in series {
            self.0.push_str(name);
            self.labels(metric, values.as_ref());
            self.line(format_args!(" {value}"));
        }
    }

    /// The page.
    pub fn into_text(self) -> String {
        self.0
    }

    fn labels(&mut self, metric: &Metric, values: &[&str]) {
        debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
        let mut before = '{';
        for (label, value) in metric.labels.iter().zip(values) {
            self.0.push(before);
            self.0.push_str(label.name);
            self.0.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
            before = ',';
        }
        if before == ',' {
            self.0.push('}');
        }
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _written = writeln!(self.0, "{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metric;

    #[test]
    fn a_family_is_written_with_its_labels_quoted_and_not_at_all_without_a_series() {
        let mut page = Page::after("before\n".into());
        page.family(&metric::PAUSED, [(["a\"b\\c\nd"], 1.0)]);
        page.family(&metric::CPU, [([""; 0], 1.5)]);
        page.family(&metric::DRAIN, [(["x"], 1.0)].into_iter().skip(1));
        let text = page.into_text();
        assert!(text.starts_with("before\n# HELP promptq_queue_paused 1 while"), "{text}");
        assert!(
            text.contains("\n# TYPE promptq_queue_paused gauge\npromptq_queue_paused{queue=\"a\\\"b\\\\c\\nd\"} 1\n")
        );
        assert!(text.ends_with("process_cpu_seconds_total 1.5\n"), "{text}");
    }
}

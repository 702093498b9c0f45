//! What is measured at one moment, in families of samples, and the forms in which others read it: Prometheus' text (format 0.0.4) and the
//! metrics of OpenTelemetry (OTLP 1, opentelemetry-proto, `metrics.proto`, in its JSON form).
use serde_json::{Value, json};
use std::fmt::{Display, Write};

/// Counts since the beginning, not since the last time (`AGGREGATION_TEMPORALITY_CUMULATIVE`).
const CUMULATIVE: u8 = 2;

/// The families, in the order in which they were begun.
#[derive(Default)]
pub(crate) struct Page(Vec<Family>);

struct Family {
    name: String,
    /// `gauge`, `counter` or `histogram`.
    kind: String,
    help: String,
    points: Vec<Point>,
}

struct Point {
    labels: Vec<(String, String)>,
    measured: Measured,
}

enum Measured {
    /// As it is written.
    Number(String),
    /// How many there are up to each bound, then all, and their sum.
    Histogram { upto: Vec<(String, u64)>, count: u64, sum: String },
}

impl Page {
    /// Begins a family, of which the samples that follow are.
    pub(crate) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let (name, kind, help) = (name.to_string(), kind.to_string(), help.to_string());
        self.0.push(Family { name, kind, help, points: Vec::new() });
    }

    fn point(&mut self, labels: &[(&str, &str)], measured: Measured) {
        let labels = labels.iter().map(|(label, text)| (label.to_string(), text.to_string())).collect();
        if let Some(family) = self.0.last_mut() {
            family.points.push(Point { labels, measured });
        }
    }

    pub(crate) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.point(labels, Measured::Number(value.to_string()));
    }

    /// One histogram: how many there are up to each bound, then all, and their sum.
    pub(crate) fn histogram(
        &mut self,
        labels: &[(&str, &str)],
        upto: impl IntoIterator<Item = (String, u64)>,
        count: u64,
        sum: impl Display,
    ) {
        let measured = Measured::Histogram { upto: upto.into_iter().collect(), count, sum: sum.to_string() };
        self.point(labels, measured);
    }

    /// A family of one sample.
    pub(crate) fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(&[], value);
    }

    /// As Prometheus reads it.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for Family { name, kind, help, points } in &self.0 {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for Point { labels, measured } in points {
                let labels: Vec<(&str, &str)> =
                    labels.iter().map(|(name, text)| (&**name, &**text)).collect();
                match measured {
                    Measured::Number(value) => line(&mut text, name, &labels, value),
                    Measured::Histogram { upto, count, sum } => {
                        let bucket = format!("{name}_bucket");
                        let all = ("+Inf".to_string(), *count);
                        for (bound, count) in upto.iter().chain([&all]) {
                            line(&mut text, &bucket, &[&labels[..], &[("le", bound)]].concat(), count);
                        }
                        line(&mut text, &format!("{name}_sum"), &labels, sum);
                        line(&mut text, &format!("{name}_count"), &labels, count);
                    }
                }
            }
        }
        text
    }

    /// The metrics of one scope (`Metric` in `metrics.proto`); counts began at `since`, and all was measured at `now`, nanoseconds
    /// since 1970.
    pub(crate) fn metrics(&self, since: u64, now: u64) -> Vec<Value> {
        let families = self.0.iter().filter(|family| !family.points.is_empty());
        families.map(|family| family.metric(since, now)).collect()
    }
}

fn line(text: &mut String, name: &str, labels: &[(&str, &str)], value: impl Display) {
    text.push_str(name);
    for (index, (label, words)) in labels.iter().enumerate() {
        let words = words.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{}{label}=\"{words}\"", if index == 0 { '{' } else { ',' });
    }
    let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
}

/// Attributes (`KeyValue` in `common.proto`).
pub(crate) fn attributes<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<Value> {
    pairs.into_iter().map(|(key, text)| json!({ "key": key, "value": { "stringValue": text } })).collect()
}

impl Family {
    fn metric(&self, since: u64, now: u64) -> Value {
        let points: Vec<Value> = self.points.iter().map(|point| point.data(since, now)).collect();
        let data = match &*self.kind {
            "counter" => {
                let sum = json!({
                    "aggregationTemporality": CUMULATIVE, "isMonotonic": true, "dataPoints": points,
                });
                ("sum", sum)
            }
            "histogram" => {
                ("histogram", json!({ "aggregationTemporality": CUMULATIVE, "dataPoints": points }))
            }
            _ => ("gauge", json!({ "dataPoints": points })),
        };
        let base = self.name.strip_suffix("_total").unwrap_or(&self.name);
        // Units as UCUM has them.
        let unit = match base.rsplit('_').next() {
            Some("seconds") => "s",
            Some("bytes") => "By",
            _ => "",
        };
        let (which, data) = data;
        json!({ "name": self.name, "description": self.help, "unit": unit, which: data })
    }
}

impl Point {
    fn data(&self, since: u64, now: u64) -> Value {
        // Numbers of 64 bits are texts in JSON.
        let mut data = json!({
            "attributes": attributes(self.labels.iter().map(|(label, text)| (&**label, &**text))),
            "startTimeUnixNano": since.to_string(),
            "timeUnixNano": now.to_string(),
        });
        match &self.measured {
            Measured::Number(value) => match value.parse::<i64>() {
                Ok(_) => data["asInt"] = json!(value),
                Err(_) => data["asDouble"] = json!(value.parse::<f64>().unwrap_or_default()),
            },
            Measured::Histogram { upto, count, sum } => {
                let bounds: Vec<f64> =
                    upto.iter().map(|(bound, _)| bound.parse().unwrap_or_default()).collect();
                let sums = upto.iter().map(|(_, upto)| *upto).chain([*count]);
                let before = std::iter::once(0).chain(upto.iter().map(|(_, upto)| *upto));
                let each = sums.zip(before).map(|(upto, before)| upto.saturating_sub(before).to_string());
                data["explicitBounds"] = json!(bounds);
                data["bucketCounts"] = each.collect();
                data["count"] = json!(count.to_string());
                data["sum"] = json!(sum.parse::<f64>().unwrap_or_default());
            }
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_line_whatever_is_in_it() {
        let mut page = Page::default();
        page.family("a_total", "counter", "Of a.");
        page.sample(&[("x", "q\"\\\n")], 1.5);
        page.one("b", "gauge", "Help.", 2);
        let text = "# HELP a_total Of a.\n# TYPE a_total counter\na_total{x=\"q\\\"\\\\\\n\"} 1.5\n\
                    # HELP b Help.\n# TYPE b gauge\nb 2\n";
        assert_eq!(page.text(), text);
    }

    #[test]
    fn the_other_form_says_the_same() {
        let mut page = Page::default();
        page.family("a_seconds_total", "counter", "Of a.");
        page.sample(&[("x", "y")], 1.5);
        page.one("b_bytes", "gauge", "Help.", 2);
        page.family("c", "histogram", "Of c.");
        page.histogram(&[], [("0.5".to_string(), 2), ("1".to_string(), 3)], 7, 12.25);
        page.family("none", "gauge", "Of nothing.");
        let metrics = page.metrics(5, 9);
        assert_eq!(metrics.len(), 3);
        assert_eq!(
            metrics[0],
            json!({
                "name": "a_seconds_total", "description": "Of a.", "unit": "s",
                "sum": { "aggregationTemporality": 2, "isMonotonic": true, "dataPoints": [{
                    "attributes": [{ "key": "x", "value": { "stringValue": "y" } }],
                    "startTimeUnixNano": "5", "timeUnixNano": "9", "asDouble": 1.5,
                }] },
            })
        );
        assert_eq!(
            (&metrics[1]["unit"], &metrics[1]["gauge"]["dataPoints"][0]["asInt"]),
            (&json!("By"), &json!("2"))
        );
        let point = &metrics[2]["histogram"]["dataPoints"][0];
        assert_eq!(point["explicitBounds"], json!([0.5, 1.0]));
        assert_eq!(point["bucketCounts"], json!(["2", "1", "4"]));
        assert_eq!((&point["count"], &point["sum"]), (&json!("7"), &json!(12.25)));
    }
}

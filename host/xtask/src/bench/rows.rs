//! Rows of a report: what was measured, against what, and the bars.

use serde_json::{Value, json};

/// Which way is good.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

/// What the bars are for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// The figure itself; a baseline is shown beside it.
    Figure,
    /// Its ratio to the baseline.
    Ratio,
}

/// What is asked of a row, and how it is measured.
pub struct Bar {
    pub name: &'static str,
    /// Empty: there is none.
    pub baseline: &'static str,
    pub judged: Judged,
    pub unit: &'static str,
    pub better: Better,
    pub must: f64,
    pub aim: f64,
    /// Of the CPU time beside it, where it is measured.
    pub cpu_unit: &'static str,
}

impl Bar {
    /// At least so much of the baseline.
    pub const fn ratio(
        name: &'static str,
        baseline: &'static str,
        unit: &'static str,
        must: f64,
        aim: f64,
    ) -> Bar {
        Bar {
            name,
            baseline,
            judged: Judged::Ratio,
            unit,
            better: Better::Higher,
            must,
            aim,
            cpu_unit: "s/GB",
        }
    }

    /// The figure must not be more.
    pub const fn limit(name: &'static str, unit: &'static str, must: f64, aim: f64) -> Bar {
        Bar {
            name,
            baseline: "",
            judged: Judged::Figure,
            unit,
            better: Better::Lower,
            must,
            aim,
            cpu_unit: "s/GB",
        }
    }

    /// Shown beside it; what the bars are for stays.
    pub const fn beside(mut self, baseline: &'static str) -> Bar {
        self.baseline = baseline;
        self
    }

    /// Its CPU time is for one transaction, in microseconds.
    pub const fn per_transaction(mut self) -> Bar {
        self.cpu_unit = "µs/tx";
        self
    }

    /// Less is better: at most so much of the baseline.
    pub const fn at_most(
        name: &'static str,
        baseline: &'static str,
        unit: &'static str,
        must: f64,
        aim: f64,
    ) -> Bar {
        Bar {
            better: Better::Lower,
            ..Bar::ratio(name, baseline, unit, must, aim)
        }
    }
}

/// One measurement of a row in one round: the figure, and the CPU time of the processes on the way, in the row's unit.
#[derive(Clone, Copy, Default)]
pub struct Sample {
    pub value: f64,
    pub cpu: Option<f64>,
}

impl From<f64> for Sample {
    fn from(value: f64) -> Self {
        Sample { value, cpu: None }
    }
}

struct Row {
    bar: &'static Bar,
    postern: Vec<Sample>,
    baseline: Vec<Sample>,
}

/// The rows measured so far.
pub struct Report {
    suite: &'static str,
    bars: &'static [Bar],
    only: Vec<String>,
    rows: Vec<Row>,
}

impl Report {
    /// Of a suite with these bars.
    pub fn new(suite: &'static str, bars: &'static [Bar], only: &[String]) -> Self {
        Report {
            suite,
            bars,
            only: only.to_vec(),
            rows: Vec::new(),
        }
    }

    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| name.contains(o.as_str()))
    }

    pub fn wants_any(&self, names: &[&str]) -> bool {
        names.iter().any(|n| self.wants(n))
    }

    /// Adds what was measured; rows that nobody asked for are dropped.
    pub fn add(&mut self, name: &str, postern: &[Sample], baseline: &[Sample]) {
        let Some(bar) = self.bars.iter().find(|b| b.name == name) else {
            return;
        };
        if !self.wants(name) || postern.is_empty() {
            return;
        }
        let row = Row {
            bar,
            postern: postern.to_vec(),
            baseline: baseline.to_vec(),
        };
        eprintln!("  {}", row.line().join("  "));
        self.rows.push(row);
    }

    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        json!({"suite": self.suite, "rows": rows})
    }

    pub fn table(&self) -> String {
        let head = [
            "row", "postern", "baseline", "", "ratio", "must", "aim", "CPU", "",
        ];
        let mut lines: Vec<Vec<String>> = vec![head.iter().map(|h| h.to_string()).collect()];
        lines.extend(self.rows.iter().map(Row::line));
        let mut widths = vec![0; head.len()];
        for line in &lines {
            for (w, cell) in widths.iter_mut().zip(line) {
                *w = (*w).max(cell.chars().count());
            }
        }
        let rendered = lines.iter().map(|line| {
            let cells: Vec<String> = line
                .iter()
                .zip(&widths)
                .map(|(c, w)| format!("{c:<w$}", w = *w))
                .collect();
            cells.join("  ").trim_end().to_string()
        });
        rendered.collect::<Vec<_>>().join("\n")
    }

    /// Names of the rows that miss their must.
    pub fn missed(&self) -> Vec<String> {
        self.rows
            .iter()
            .filter(|r| !r.holds(r.bar.must))
            .map(|r| r.bar.name.to_string())
            .collect()
    }
}

impl Row {
    fn own(&self) -> f64 {
        median(self.postern.iter().map(|s| s.value))
    }

    /// Baseline and the ratio to it, where there is one.
    fn compared(&self) -> Option<(f64, f64)> {
        let base = median(self.baseline.iter().map(|s| s.value));
        (!self.baseline.is_empty()).then(|| (base, self.own() / base))
    }

    /// What the bars are for.
    fn judged(&self) -> f64 {
        match (self.bar.judged, self.compared()) {
            (Judged::Ratio, Some((_, ratio))) => ratio,
            _ => self.own(),
        }
    }

    fn holds(&self, bar: f64) -> bool {
        match self.bar.better {
            Better::Higher => self.judged() >= bar,
            Better::Lower => self.judged() <= bar,
        }
    }

    fn json(&self) -> Value {
        let own = self.own();
        let (base, ratio) = self.compared().unzip();
        json!({
            "name": self.bar.name, "postern": own, "baseline": base, "ratio": ratio, "unit": self.bar.unit,
            "baseline_name": if self.bar.baseline.is_empty() { Value::Null } else { json!(self.bar.baseline) },
            "better": if self.bar.better == Better::Higher { "higher" } else { "lower" },
            "must": self.bar.must, "aim": self.bar.aim,
            "judged": if self.bar.judged == Judged::Ratio { "ratio" } else { "figure" },
            "cpu_unit": self.bar.cpu_unit, "postern_cpu": cpu(&self.postern), "baseline_cpu": cpu(&self.baseline),
            "postern_rounds": self.postern.iter().map(|s| s.value).collect::<Vec<_>>(),
            "baseline_rounds": self.baseline.iter().map(|s| s.value).collect::<Vec<_>>(),
        })
    }

    fn line(&self) -> Vec<String> {
        let unit = self.bar.unit;
        let own = format!("{} {unit}", short(self.own()));
        let (base, name, ratio) = match self.compared() {
            None => (String::new(), String::new(), String::new()),
            Some((base, ratio)) => (
                format!("{} {unit}", short(base)),
                self.bar.baseline.to_string(),
                format!("{ratio:.2}"),
            ),
        };
        let sign = if self.bar.better == Better::Higher {
            "≥"
        } else {
            "≤"
        };
        let cpu = match (cpu(&self.postern), cpu(&self.baseline)) {
            (Some(p), Some(b)) => {
                format!("{} / {} {}", short(p), short(b), self.bar.cpu_unit)
            }
            _ => String::new(),
        };
        let verdict = match (self.holds(self.bar.aim), self.holds(self.bar.must)) {
            (true, _) => "aim",
            (_, true) => "ok",
            _ => "MISSED",
        };
        vec![
            self.bar.name.into(),
            own,
            base,
            name,
            ratio,
            format!("{sign} {}", self.bar.must),
            self.bar.aim.to_string(),
            cpu,
            verdict.into(),
        ]
    }
}

fn cpu(samples: &[Sample]) -> Option<f64> {
    let known: Vec<f64> = samples.iter().filter_map(|s| s.cpu).collect();
    (!known.is_empty()).then(|| median(known.into_iter()))
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    match all.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => all[n / 2],
        n => (all[n / 2 - 1] + all[n / 2]) / 2.0,
    }
}

fn short(v: f64) -> String {
    if v.abs() >= 100.0 {
        format!("{v:.0}")
    } else {
        format!("{v:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_is_asked_of_it() {
        const BARS: &[Bar] = &[
            Bar::ratio("cat-down", "OpenSSH direct", "MB/s", 0.6, 0.9),
            Bar::limit("stall-pinned", "MB", 8.0, 3.0),
            Bar::limit("add-one", "s", 1.0, 0.5).beside("the old way"),
        ];
        let mut report = Report::new("ssh", BARS, &[]);
        let sample = |value, cpu| Sample {
            value,
            cpu: Some(cpu),
        };
        report.add(
            "cat-down",
            &[sample(90.0, 3.0), sample(70.0, 1.0), sample(80.0, 2.0)],
            &[sample(100.0, 1.0)],
        );
        report.add("stall-pinned", &[9.0.into()], &[]);
        report.add("add-one", &[0.9.into()], &[0.3.into()]);
        let json = report.json();
        let row = &json["rows"][0];
        assert_eq!(
            (row["ratio"].as_f64(), row["postern"].as_f64()),
            (Some(0.8), Some(80.0))
        );
        for key in [
            "name",
            "postern",
            "baseline",
            "baseline_name",
            "ratio",
            "unit",
            "better",
            "must",
            "aim",
        ] {
            assert!(row.get(key).is_some(), "no {key}");
        }
        assert_eq!(report.missed(), ["stall-pinned"]);
        assert!(
            report.table().contains("MISSED") && report.table().contains("2.00 / 1.00"),
            "{}",
            report.table()
        );
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([1.0, 2.0].into_iter()), 1.5);
        assert!(median([].into_iter()).is_nan());
    }
}

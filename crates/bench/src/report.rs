//! Figures, and how they are shown: a table for people, JSON lines for programs.

use std::fmt::Write;

use crate::engines::Name;
use crate::workload::Workload;

/// The figures of one measurement. `None` where the workload has no such figure.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    pub ops_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    pub stall_s: f64,
    pub cpu_us_per_op: Option<f64>,
    pub read_bytes_per_op: Option<f64>,
    /// The operations of the worst whole second by the mean.
    pub worst_second: Option<f64>,
    /// The 99th percentile by that of the same operations on an idle engine.
    pub p99_by_idle: Option<f64>,
    pub write_amp: Option<f64>,
    pub space_amp: Option<f64>,
    pub peak_rss_mib: Option<f64>,
    pub allocs_per_op: Option<f64>,
    pub alloc_bytes_per_op: Option<f64>,
}

impl Figures {
    /// The line by which a child tells its parent.
    pub fn to_line(self) -> String {
        let mut line = String::from("figures");
        for figure in self.always() {
            let _ = write!(line, " {figure}");
        }
        for figure in self.sometimes() {
            match figure {
                Some(figure) => _ = write!(line, " {figure}"),
                None => line.push_str(" -"),
            }
        }
        line
    }

    /// Parses the line.
    pub fn from_line(line: &str) -> Option<Figures> {
        let words: Vec<&str> = line.strip_prefix("figures ")?.split_whitespace().collect();
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o] = words[..] else { return None };
        let some = |word: &str| if word == "-" { Some(None) } else { word.parse().ok().map(Some) };
        Some(Figures {
            ops_per_s: a.parse().ok()?,
            p50_us: b.parse().ok()?,
            p99_us: c.parse().ok()?,
            p999_us: d.parse().ok()?,
            max_us: e.parse().ok()?,
            stall_s: f.parse().ok()?,
            cpu_us_per_op: some(g)?,
            read_bytes_per_op: some(h)?,
            worst_second: some(i)?,
            p99_by_idle: some(j)?,
            write_amp: some(k)?,
            space_amp: some(l)?,
            peak_rss_mib: some(m)?,
            allocs_per_op: some(n)?,
            alloc_bytes_per_op: some(o)?,
        })
    }

    fn always(self) -> [f64; 6] {
        [self.ops_per_s, self.p50_us, self.p99_us, self.p999_us, self.max_us, self.stall_s]
    }

    fn sometimes(self) -> [Option<f64>; 9] {
        [
            self.cpu_us_per_op,
            self.read_bytes_per_op,
            self.worst_second,
            self.p99_by_idle,
            self.write_amp,
            self.space_amp,
            self.peak_rss_mib,
            self.allocs_per_op,
            self.alloc_bytes_per_op,
        ]
    }
}

/// What became of a workload on an engine.
pub struct Row {
    pub workload: Workload,
    pub engine: Name,
    /// The median run, or why there is none.
    pub outcome: Result<Figures, String>,
    /// Whether it ran under a memory limit.
    pub comparable: bool,
}

impl Row {
    /// Returns the row as a JSON object on one line.
    pub fn to_json(&self) -> String {
        let mut json = format!(
            "{{\"workload\":\"{}\",\"engine\":\"{}\"",
            self.workload.name(),
            self.engine.name()
        );
        match &self.outcome {
            Ok(figures) => {
                let names = ["ops_per_s", "p50_us", "p99_us", "p999_us", "max_us", "stall_s"];
                for (name, figure) in names.into_iter().zip(figures.always()) {
                    push(&mut json, name, Some(figure));
                }
                let names = [
                    "cpu_us_per_op",
                    "read_bytes_per_op",
                    "worst_second",
                    "p99_by_idle",
                    "write_amp",
                    "space_amp",
                    "peak_rss_mib",
                    "allocs_per_op",
                    "alloc_bytes_per_op",
                ];
                for (name, figure) in names.into_iter().zip(figures.sometimes()) {
                    push(&mut json, name, figure);
                }
            }
            Err(reason) => {
                let _ = write!(json, ",\"error\":\"{}\"", escaped(reason));
            }
        }
        let _ = write!(json, ",\"comparable\":{}}}", self.comparable);
        json
    }

    /// Returns the row for the table, with our rate by that of each peer.
    pub fn to_table(&self, peers: &[(Name, f64)]) -> String {
        let (workload, engine) = (self.workload.name(), self.engine.name());
        let figures = match &self.outcome {
            Ok(figures) => figures,
            Err(reason) => return format!("{workload:<18} {engine:<12} {reason}"),
        };
        let some = |figure: Option<f64>| figure.map_or("-".into(), |figure| format!("{figure:.2}"));
        let whole =
            |figure: Option<f64>| figure.map_or("-".into(), |figure| format!("{figure:.0}"));
        let mut row = format!(
            "{workload:<18} {engine:<12} {:>10.0} {:>9} {:>9} {:>9} {:>9} {:>7.1} {:>7} {:>7} {:>7} {:>8} {:>7} {:>7} {:>8} {:>9}",
            figures.ops_per_s,
            time(figures.p50_us),
            time(figures.p99_us),
            time(figures.p999_us),
            time(figures.max_us),
            figures.stall_s,
            some(figures.worst_second),
            some(figures.write_amp),
            some(figures.space_amp),
            whole(figures.read_bytes_per_op),
            whole(figures.peak_rss_mib),
            some(figures.cpu_us_per_op),
            some(figures.allocs_per_op),
            whole(figures.alloc_bytes_per_op),
        );
        if let Some(ratio) = figures.p99_by_idle {
            let _ = write!(row, "  p99 {ratio:.2} x idle");
        }
        for (peer, rate) in peers {
            let _ = write!(row, "  {:.2} x {}", figures.ops_per_s / rate, peer.name());
        }
        if !self.comparable {
            row.push_str("  not comparable");
        }
        row
    }
}

/// Returns the table's heading.
pub fn heading() -> String {
    format!(
        "{:<18} {:<12} {:>10} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7} {:>7} {:>7} {:>8} {:>7} {:>7} {:>8} {:>9}",
        "workload",
        "engine",
        "ops/s",
        "p50",
        "p99",
        "p99.9",
        "max",
        "stall s",
        "worst s",
        "w-amp",
        "s-amp",
        "read B",
        "RSS MiB",
        "CPU us",
        "allocs",
        "alloc B"
    )
}

/// Adds a field to a JSON object that has one already.
pub fn push(json: &mut String, name: &str, figure: Option<f64>) {
    let figure = figure.filter(|figure| figure.is_finite());
    let text = figure.map_or("null".into(), |figure| format!("{figure:.3}"));
    let _ = write!(json, ",\"{name}\":{text}");
}

/// Returns a text as it stands between the quotes of a JSON string.
pub fn escaped(text: &str) -> String {
    let escaped: String = text.chars().flat_map(char::escape_default).collect();
    // Only what both notations write alike is left after Rust's own escapes.
    escaped.replace("\\u{", "(").replace('}', ")").replace("\\'", "'")
}

/// Shows microseconds in the unit that leaves few digits.
pub fn time(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us:.1} us"),
        us if us < 1_000_000.0 => format!("{:.1} ms", us / 1000.0),
        us => format!("{:.2} s", us / 1_000_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURES: Figures = Figures {
        ops_per_s: 1234.5,
        p50_us: 0.25,
        p99_us: 1500.0,
        p999_us: 2_500_000.0,
        max_us: 3_000_000.0,
        stall_s: 5.5,
        cpu_us_per_op: Some(2.5),
        read_bytes_per_op: None,
        worst_second: Some(0.5),
        p99_by_idle: Some(1.25),
        write_amp: Some(1.5),
        space_amp: None,
        peak_rss_mib: Some(70.2),
        allocs_per_op: Some(3.25),
        alloc_bytes_per_op: Some(410.5),
    };

    #[test]
    fn figures_survive_the_line_between_child_and_parent() {
        assert_eq!(Figures::from_line(&FIGURES.to_line()), Some(FIGURES));
        for broken in ["", "figures", "figures 1 2 3", "figures 1 2 3 4 5 x - - - - - - - - -"] {
            assert_eq!(Figures::from_line(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_row_reads_as_json_and_as_a_table() {
        let (workload, engine) = (Workload::Fillseq, Name::Atoll);
        let row = Row { workload, engine, outcome: Ok(FIGURES), comparable: false };
        assert_eq!(
            row.to_json(),
            "{\"workload\":\"fillseq\",\"engine\":\"atoll\",\"ops_per_s\":1234.500,\
             \"p50_us\":0.250,\"p99_us\":1500.000,\"p999_us\":2500000.000,\
             \"max_us\":3000000.000,\"stall_s\":5.500,\"cpu_us_per_op\":2.500,\
             \"read_bytes_per_op\":null,\"worst_second\":0.500,\"p99_by_idle\":1.250,\"write_amp\":1.500,\"space_amp\":null,\
             \"peak_rss_mib\":70.200,\"allocs_per_op\":3.250,\"alloc_bytes_per_op\":410.500,\
             \"comparable\":false}"
        );
        let table = row.to_table(&[(Name::Fjall, 617.25)]);
        assert!(table.ends_with("  p99 1.25 x idle  2.00 x fjall  not comparable"), "{table}");
        assert!(table.contains("1.5 ms    2.50 s"), "{table}");

        let outcome = Err("killed: \"memory\"\n€".into());
        let row = Row { workload, engine, outcome, comparable: true };
        assert_eq!(
            row.to_json(),
            "{\"workload\":\"fillseq\",\"engine\":\"atoll\",\
             \"error\":\"killed: \\\"memory\\\"\\n(20ac)\",\"comparable\":true}"
        );
    }
}

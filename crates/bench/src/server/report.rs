//! Rows: a table for people, JSON lines for programs.
//!
//! ```text
//!   sample     one measurement: a figure, or none, for each column of its table
//!   outcome    the samples of all runs -> the median of each column; one failure fails the row
//!   row        case, server, outcome, ratios to Redis, what to know about it
//! ```
//!
//! A median is that of its column: the run with the median rate need not have the median latency.
//! Where the number of runs is even it is the mean of the middle two.

use std::fmt::Write;

use super::plan::{Case, Workload};
use super::subject::Which;
use crate::report::{escaped, push, time};

/// A column: its name in JSON, its heading, how a figure is shown, and the heading of its ratio to
/// Redis, empty where none is shown.
pub struct Column {
    json: &'static str,
    head: &'static str,
    show: fn(f64) -> String,
    ratio: &'static str,
}

const fn column(
    json: &'static str,
    head: &'static str,
    show: fn(f64) -> String,
    ratio: &'static str,
) -> Column {
    Column { json, head, show, ratio }
}

fn whole(figure: f64) -> String {
    format!("{figure:.0}")
}

fn tenths(figure: f64) -> String {
    format!("{figure:.1}")
}

fn hundredths(figure: f64) -> String {
    format!("{figure:.2}")
}

/// Of loads. Columns without a heading are in JSON, and a few in a row's remark.
const LOAD: [Column; 10] = [
    column("ops_per_s", "ops/s", whole, "x ops"),
    column("p50_us", "p50", time, ""),
    column("p99_us", "p99", time, "x p99"),
    column("p999_us", "p99.9", time, ""),
    column("max_us", "max", time, ""),
    column("cpu_us_per_op", "CPU us", hundredths, "x CPU"),
    column("rss_mib", "RSS MiB", whole, ""),
    column("generator_busy", "", hundredths, ""),
    column("writes_per_s", "", whole, ""),
    column("write_p99_us", "", time, ""),
];
const GENERATOR_BUSY: usize = 7;
const WRITES_PER_S: usize = 8;
const WRITE_P99: usize = 9;

const IDLE: [Column; 3] = [
    column("start_ms", "start ms", tenths, ""),
    column("cpu_percent", "CPU %", hundredths, ""),
    column("rss_mib", "RSS MiB", tenths, "x RSS"),
];

const RESTART: [Column; 3] = [
    column("after_kill_ms", "after kill", tenths, "x kill"),
    column("after_stop_ms", "after stop", tenths, "x stop"),
    column("stop_ms", "stopping", tenths, ""),
];

/// Of a load.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadFigures {
    /// Operations a second.
    pub ops_per_s: f64,
    /// Latencies in microseconds.
    pub p50_us: f64,
    /// The same.
    pub p99_us: f64,
    /// The same.
    pub p999_us: Option<f64>,
    /// The same.
    pub max_us: f64,
    /// Processor time of the server for an operation.
    pub cpu_us_per_op: Option<f64>,
    /// The server's resident set afterwards.
    pub rss_mib: f64,
    /// Share of a processor that the generator used.
    pub generator_busy: Option<f64>,
    /// Of the writes beside the load.
    pub writes_per_s: Option<f64>,
    /// The same, from when a write was due.
    pub write_p99_us: Option<f64>,
}

/// One measurement: a figure for each column of the workload's table.
pub type Sample = Vec<Option<f64>>;

impl From<LoadFigures> for Sample {
    fn from(figures: LoadFigures) -> Sample {
        vec![
            Some(figures.ops_per_s),
            Some(figures.p50_us),
            Some(figures.p99_us),
            figures.p999_us,
            Some(figures.max_us),
            figures.cpu_us_per_op,
            Some(figures.rss_mib),
            figures.generator_busy,
            figures.writes_per_s,
            figures.write_p99_us,
        ]
    }
}

/// Returns the columns of a workload's table.
pub fn columns(workload: Workload) -> &'static [Column] {
    match workload {
        Workload::Idle => &IDLE,
        Workload::Restart => &RESTART,
        _ => &LOAD,
    }
}

/// Returns the median of each column, or the first failure.
pub fn median(outcomes: &[Result<Sample, String>]) -> Result<Sample, String> {
    let samples: Vec<&Sample> = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().map_err(String::clone))
        .collect::<Result<_, _>>()?;
    let width = samples.first().ok_or("no run")?.len();
    let column = |i: usize| {
        let mut figures: Vec<f64> = samples.iter().filter_map(|sample| sample[i]).collect();
        figures.sort_by(f64::total_cmp);
        let (low, high) = (figures.len().checked_sub(1)? / 2, figures.len() / 2);
        Some((figures[low] + figures[high]) / 2.0)
    };
    Ok((0..width).map(column).collect())
}

/// A line of the table.
pub struct Row<'a> {
    /// What was measured.
    pub case: &'a Case,
    /// On which server.
    pub which: Which,
    /// The medians, or why there are none.
    pub outcome: &'a Result<Sample, String>,
    /// Redis's, where it was measured.
    pub redis: Option<&'a Sample>,
    /// What a reader has to know.
    pub remark: Option<String>,
}

impl Row<'_> {
    /// Returns the line.
    pub fn to_table(&self) -> String {
        let mut line = label(self.case);
        let _ = write!(line, " {:<8}", self.which);
        let sample = match self.outcome {
            Ok(sample) => sample,
            Err(reason) => {
                let _ = write!(line, "  FAILED: {reason}");
                return line;
            }
        };
        let columns = columns(self.case.workload);
        for (column, figure) in
            columns.iter().zip(sample).filter(|(column, _)| !column.head.is_empty())
        {
            let text = figure.map_or("-".into(), column.show);
            let _ = write!(line, " {text:>10}");
        }
        if let Some(redis) = self.redis {
            for (i, _) in compared(self.case.workload) {
                let ratio = sample[i].zip(redis[i]).map(|(ours, redis)| ours / redis);
                let ratio = ratio.filter(|ratio| ratio.is_finite());
                let _ = write!(line, " {:>7}", ratio.map_or("-".into(), hundredths));
            }
        }
        for remark in self.remarks(sample) {
            let _ = write!(line, "  {remark}");
        }
        line
    }

    fn remarks(&self, sample: &Sample) -> Vec<String> {
        let mut remarks: Vec<String> = self.remark.iter().cloned().collect();
        let of = |i: usize| sample.get(i).copied().flatten();
        if let (Some(rate), Some(p99)) = (of(WRITES_PER_S), of(WRITE_P99)) {
            remarks.push(format!("{rate:.0} writes/s beside, p99 {}", time(p99)));
        }
        if let Some(busy) = of(GENERATOR_BUSY).filter(|&busy| busy > 0.9) {
            remarks.push(format!("generator {:.0} % busy", busy * 100.0));
        }
        remarks
    }
}

/// Returns the columns whose ratio is shown.
fn compared(workload: Workload) -> impl Iterator<Item = (usize, &'static Column)> {
    columns(workload).iter().enumerate().filter(|(_, column)| !column.ratio.is_empty())
}

/// Returns the heading of a workload's table; workloads with equal headings share a table.
pub fn heading(workload: Workload) -> String {
    let mut line = format!(
        "{:<16} {:<8} {:<4} {:>6} {:>6} {:>3} {:<8}",
        "workload", "promise", "tool", "keys", "value", "P", "server"
    );
    for column in columns(workload).iter().filter(|column| !column.head.is_empty()) {
        let _ = write!(line, " {:>10}", column.head);
    }
    for (_, column) in compared(workload) {
        let _ = write!(line, " {:>7}", column.ratio);
    }
    line
}

/// Returns the columns that say what was measured.
pub fn label(case: &Case) -> String {
    let or_dash = |text: String, number: u64| if number == 0 { "-".into() } else { text };
    let tool = if case.tool.name() == "own" { "own" } else { "r-b" };
    format!(
        "{:<16} {:<8} {tool:<4} {:>6} {:>6} {:>3}",
        case.workload.name(),
        case.durability,
        or_dash(count(case.keyspace), case.keyspace),
        or_dash(bytes(case.value_size), case.value_size),
        or_dash(case.pipeline.to_string(), case.pipeline),
    )
}

/// Returns one measurement as a JSON object on one line.
pub fn to_json(case: &Case, which: Which, run: u32, outcome: &Result<Sample, String>) -> String {
    let mut json = format!(
        "{{\"workload\":\"{}\",\"durability\":\"{}\",\"tool\":\"{}\",\"server\":\"{which}\",\
         \"keyspace\":{},\"value_size\":{},\"pipeline\":{},\"run\":{run}",
        case.workload.name(),
        case.durability,
        case.tool.name(),
        case.keyspace,
        case.value_size,
        case.pipeline,
    );
    match outcome {
        Ok(sample) => {
            for (column, &figure) in columns(case.workload).iter().zip(sample) {
                push(&mut json, column.json, figure);
            }
        }
        Err(reason) => {
            let _ = write!(json, ",\"error\":\"{}\"", escaped(reason));
        }
    }
    json.push('}');
    json
}

fn count(number: u64) -> String {
    match number {
        number if number.is_multiple_of(1_000_000) => format!("{}M", number / 1_000_000),
        number if number >= 10_000 => format!("{}k", number / 1000),
        number => number.to_string(),
    }
}

fn bytes(number: u64) -> String {
    if number.is_multiple_of(1024) { format!("{}Ki", number / 1024) } else { number.to_string() }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Tool;
    use super::super::subject::Durability;
    use super::*;

    const CASE: Case = Case {
        workload: Workload::Set,
        durability: Durability::Synced,
        tool: Tool::Own,
        keyspace: 100_000,
        value_size: 64,
        pipeline: 16,
    };

    fn sample(ops_per_s: f64, cpu: f64) -> Sample {
        let cpu_us_per_op = Some(cpu);
        LoadFigures { ops_per_s, cpu_us_per_op, ..LoadFigures::default() }.into()
    }

    #[test]
    fn each_column_has_a_median_of_its_own() {
        let of = |samples: &[Sample]| {
            let outcomes: Vec<_> = samples.iter().cloned().map(Ok).collect();
            median(&outcomes)
        };
        let odd = of(&[sample(9.0, 1.0), sample(1.0, 5.0), sample(5.0, 3.0)]).unwrap();
        assert_eq!((odd[0], odd[5], odd[3]), (Some(5.0), Some(3.0), None));
        let even = of(&[sample(9.0, 1.0), sample(5.0, 4.0)]).unwrap();
        assert_eq!((even[0], even[5]), (Some(7.0), Some(2.5)));
        assert!(of(&[]).is_err());
        let failed = [Ok(sample(1.0, 1.0)), Err("refused".into()), Ok(sample(1.0, 1.0))];
        assert_eq!(median(&failed), Err("refused".into()));
    }

    #[test]
    fn a_row_has_ratios_to_redis_and_stands_below_its_heading() {
        let (ours, redis) = (Ok(sample(300.0, 2.0)), sample(200.0, 8.0));
        let which = Which::Atoll { cores: 1 };
        let row = |redis, remark| Row { case: &CASE, which, outcome: &ours, redis, remark };
        let line = row(Some(&redis), None).to_table();
        assert!(
            line.starts_with("set              synced   own    100k     64  16 atoll/1 "),
            "{line}"
        );
        assert!(line.ends_with("    1.50       -    0.25"), "{line}");
        let heading = heading(Workload::Set);
        assert_eq!(line.len(), heading.len(), "{heading}");
        assert!(heading.ends_with("   x ops   x p99   x CPU"), "{heading}");
        let line = row(None, Some("not comparable".into())).to_table();
        assert!(line.ends_with("0  not comparable"), "{line}");
    }

    #[test]
    fn a_row_says_what_its_figures_hide() {
        let figures = LoadFigures {
            generator_busy: Some(0.97),
            writes_per_s: Some(1998.7),
            write_p99_us: Some(2100.0),
            ..LoadFigures::default()
        };
        let outcome = Ok(figures.into());
        let row =
            Row { case: &CASE, which: Which::Redis, outcome: &outcome, redis: None, remark: None };
        let line = row.to_table();
        let end = "1999 writes/s beside, p99 2.1 ms  generator 97 % busy";
        assert!(line.ends_with(end), "{line}");
    }

    #[test]
    fn a_failure_is_a_row_too() {
        let outcome = Err("7 replies were errors: \"OOM\"".into());
        let row =
            Row { case: &CASE, which: Which::Redis, outcome: &outcome, redis: None, remark: None };
        assert!(row.to_table().ends_with("redis     FAILED: 7 replies were errors: \"OOM\""));
        assert_eq!(
            to_json(&CASE, Which::Redis, 2, &outcome),
            "{\"workload\":\"set\",\"durability\":\"synced\",\"tool\":\"own\",\"server\":\"redis\",\
             \"keyspace\":100000,\"value_size\":64,\"pipeline\":16,\"run\":2,\
             \"error\":\"7 replies were errors: \\\"OOM\\\"\"}"
        );
        let json = to_json(&CASE, Which::Atoll { cores: 2 }, 1, &Ok(sample(1.5, 2.0)));
        assert!(json.contains("\"server\":\"atoll/2\"") && json.contains("\"ops_per_s\":1.500,"));
        assert!(json.contains("\"p999_us\":null") && json.ends_with("\"write_p99_us\":null}"));
    }
}

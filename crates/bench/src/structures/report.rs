//! The figures of a structure, and how they are shown.

use std::fmt::Write;

use crate::report::push;

/// The columns: heading, field in JSON, digits behind the point.
const COLUMNS: [(&str, &str, usize); 7] = [
    ("insert asc", "insert_ascending_ns", 0),
    ("insert rand", "insert_random_ns", 0),
    ("get rand", "get_random_ns", 0),
    ("scan fwd", "scan_forward_ns", 1),
    ("scan rev", "scan_reverse_ns", 1),
    ("B/entry", "bytes_per_entry", 1),
    ("allocs/entry", "allocs_per_entry", 3),
];

/// The figures of a measurement, in the order of the columns. `None` where there is no such figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures(pub [Option<f64>; COLUMNS.len()]);

impl Figures {
    /// The line by which a child tells its parent.
    pub fn to_line(self) -> String {
        self.0.iter().fold("figures".into(), |line, figure| {
            line + " " + &figure.map_or("-".into(), |figure| figure.to_string())
        })
    }

    /// Parses the line.
    pub fn from_line(line: &str) -> Option<Figures> {
        let words = line.strip_prefix("figures ")?.split_whitespace();
        let figures: Option<Vec<Option<f64>>> = words
            .map(|word| if word == "-" { Some(None) } else { word.parse().ok().map(Some) })
            .collect();
        Some(Figures(figures?.try_into().ok()?))
    }

    /// Returns the row for the table.
    pub fn to_table(self, name: &str, entries: u64) -> String {
        let mut row = format!("{name:<18} {entries:>9}");
        for ((heading, _, digits), figure) in COLUMNS.iter().zip(self.0) {
            let text = figure.map_or("-".into(), |figure| format!("{figure:.digits$}"));
            let _ = write!(row, "  {text:>0$}", heading.len());
        }
        row
    }

    /// Returns the row as a JSON object on one line.
    pub fn to_json(self, name: &str, entries: u64) -> String {
        let mut json = format!("{{\"structure\":\"{name}\",\"entries\":{entries}");
        for ((_, field, _), figure) in COLUMNS.iter().zip(self.0) {
            push(&mut json, field, figure);
        }
        json.push('}');
        json
    }
}

/// Returns the table's heading.
pub fn heading() -> String {
    let mut row = format!("{:<18} {:>9}", "ns/op", "entries");
    for (heading, _, _) in COLUMNS {
        let _ = write!(row, "  {heading}");
    }
    row
}

/// Returns the median of each column.
pub fn median(runs: &[Figures]) -> Figures {
    Figures(std::array::from_fn(|column| {
        let mut figures: Vec<f64> = runs.iter().filter_map(|run| run.0[column]).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURES: Figures =
        Figures([Some(100.0), Some(250.4), Some(99.9), None, None, Some(171.25), Some(2.125)]);

    #[test]
    fn figures_survive_the_line_between_child_and_parent() {
        assert_eq!(Figures::from_line(&FIGURES.to_line()), Some(FIGURES));
        for broken in ["", "figures", "figures 1 2 3", "figures 1 2 3 4 5 6 x"] {
            assert_eq!(Figures::from_line(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_row_reads_as_json_and_lies_below_its_heading() {
        assert_eq!(
            FIGURES.to_json("hash-map", 1000),
            "{\"structure\":\"hash-map\",\"entries\":1000,\"insert_ascending_ns\":100.000,\
             \"insert_random_ns\":250.400,\"get_random_ns\":99.900,\"scan_forward_ns\":null,\
             \"scan_reverse_ns\":null,\"bytes_per_entry\":171.250,\"allocs_per_entry\":2.125}"
        );
        let row = FIGURES.to_table("hash-map", 1000);
        assert_eq!(row.len(), heading().len(), "{row}\n{}", heading());
        assert!(row.ends_with("       -         -    171.2         2.125"), "{row}");
    }

    #[test]
    fn the_median_is_taken_of_each_column() {
        let run = |first, second| {
            let mut run = FIGURES;
            (run.0[0], run.0[1]) = (Some(first), Some(second));
            run
        };
        let median = median(&[run(1.0, 9.0), run(2.0, 8.0), run(3.0, 1.0)]);
        assert_eq!((median.0[0], median.0[1], median.0[3]), (Some(2.0), Some(8.0), None));
    }
}

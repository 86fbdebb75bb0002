//! Pictures of what was measured, as SVG: latencies by percentile, what happened over time, and what a connection costs at each size.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use plotters::prelude::*;

use crate::measure::Latencies;
use crate::report::number;

const SIZE: (u32, u32) = (900, 480);
const COLOURS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 160, 44), RGBColor(148, 103, 189)];

/// A line of a picture.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Latencies from the median to the rarest, the axis of percentiles growing by nines.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn percentiles(path: &Path, title: &str, latencies: &Latencies) -> anyhow::Result<()> {
    let points = latencies.by_nines();
    let series = [Series { name: "latency".to_owned(), points }];
    let label = |nines: &f64| format!("{} %", trimmed(100.0 * (1.0 - 10_f64.powf(-nines))));
    draw(path, title, ("percentile", "ms"), &series, label)
}

/// What happened over time; the axis is in seconds.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn over_time(path: &Path, title: &str, unit: &str, series: &[Series]) -> anyhow::Result<()> {
    draw(path, title, ("seconds", unit), series, |seconds| format!("{seconds:.0}"))
}

/// What each of so many connections costs.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn by_connections(path: &Path, title: &str, unit: &str, series: &[Series]) -> anyhow::Result<()> {
    draw(path, title, ("connections", unit), series, |connections| format!("{connections:.0}"))
}

/// What each of so many sessions costs; points are given with the logarithm of how many there are.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn by_sessions(path: &Path, title: &str, unit: &str, series: &[Series]) -> anyhow::Result<()> {
    draw(path, title, ("sessions", unit), series, |log| number(10_f64.powf(*log).round()))
}

fn draw(
    path: &Path,
    title: &str,
    (below, beside): (&str, &str),
    series: &[Series],
    label: impl Fn(&f64) -> String,
) -> anyhow::Result<()> {
    let points = || series.iter().flat_map(|series| &series.points);
    let most = |get: fn(&(f64, f64)) -> f64| points().map(get).fold(0.0, f64::max);
    let least_x = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let (most_x, most_y) = (most(|point| point.0), most(|point| point.1));
    // An empty picture, or one of a single point, has axes all the same.
    let from_x = if least_x.is_finite() { least_x.min(most_x) } else { 0.0 };
    let (to_x, to_y) = (most_x.max(from_x + f64::EPSILON.max(1e-9)), (most_y * 1.05).max(1e-9));
    let failed = |error: String| anyhow!("{}: {error}", path.display());
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    let drawn = || -> Result<(), Box<dyn std::error::Error>> {
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 20))
            .margin(16)
            // Half of the last label is beside the picture.
            .margin_right(48)
            .x_label_area_size(40)
            .y_label_area_size(84)
            .build_cartesian_2d(from_x..to_x, 0.0..to_y)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(below)
            .y_desc(beside)
            .x_label_formatter(&label)
            .y_label_formatter(&|value| number(*value))
            .draw()?;
        for (series, colour) in series.iter().zip(COLOURS.iter().cycle()) {
            let line = LineSeries::new(series.points.iter().copied(), colour.stroke_width(2));
            let drawn = chart.draw_series(line)?;
            drawn.label(&series.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], *colour));
        }
        if series.len() > 1 {
            chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
        }
        root.present()?;
        Ok(())
    };
    drawn().map_err(|error| failed(error.to_string())).context("a picture cannot be drawn")
}

/// As many decimals as a percentile needs, and no more.
fn trimmed(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_drawn_whatever_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.svg");
        let series = |points: &[(f64, f64)]| Series { name: "sessions".to_owned(), points: points.to_vec() };
        for points in [&[][..], &[(3.0, 7.0)], &[(0.0, 0.0), (10.0, 0.0)], &[(0.0, 1.0), (1.0, 2.0)]] {
            over_time(&path, "what happened", "sessions", &[series(points), series(points)]).unwrap();
            assert!(std::fs::read_to_string(&path).unwrap().starts_with("<svg"));
        }
        let mut latencies = Latencies::default();
        (1..=10_000).for_each(|us| latencies.record_ns(us * 1_000));
        percentiles(&path, "a push", &latencies).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("99 %") && text.contains("percentile"), "{text}");
        assert!(by_connections(Path::new("/nowhere/x.svg"), "t", "KiB", &[]).is_err());
    }
}

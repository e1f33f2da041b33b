//! Line charts as SVG: logarithmic axes, a legend, nothing else.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 180.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;
const COLOURS: [&str; 6] = ["#0b6e4f", "#c1440e", "#2f4b7c", "#8a5a83", "#a58a00", "#555555"];

pub struct Chart<'c> {
    pub title: &'c str,
    pub x: &'c str,
    pub y: &'c str,
    /// How a value stands at the axis.
    pub x_text: fn(f64) -> String,
    pub y_text: fn(f64) -> String,
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
}

/// One axis: powers of `base` from below the least value to above the largest.
struct Axis {
    low: f64,
    high: f64,
    base: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone, base: f64) -> Axis {
        let positive = values.filter(|value| *value > 0.0);
        let least = positive.clone().fold(f64::MAX, f64::min);
        let most = positive.fold(f64::MIN_POSITIVE, f64::max);
        let (low, high) = ((least.ln() / base.ln() + 1e-9).floor(), (most.ln() / base.ln() - 1e-9).ceil());
        Axis { low, high: high.max(low + 1.0), base }
    }

    /// From 0 to 1.
    fn place(&self, value: f64) -> f64 {
        (value.max(f64::MIN_POSITIVE).ln() / self.base.ln() - self.low) / (self.high - self.low)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let base = self.base;
        (self.low as i32..=self.high as i32).map(move |power| base.powi(power))
    }
}

impl Chart<'_> {
    pub fn to_svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|(_, points)| points.iter().copied());
        let x_axis = Axis::over(points().map(|point| point.0).collect::<Vec<_>>().into_iter(), 2.0);
        let y_axis = Axis::over(points().map(|point| point.1).collect::<Vec<_>>().into_iter(), 10.0);
        let at_x = |value: f64| LEFT + x_axis.place(value) * (WIDTH - LEFT - RIGHT);
        let at_y = |value: f64| HEIGHT - BOTTOM - y_axis.place(value) * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
            self.title
        );
        for tick in x_axis.ticks() {
            let (x, bottom) = (at_x(tick), HEIGHT - BOTTOM);
            let _ = writeln!(svg, "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#e4e4e4\"/>");
            let text = (self.x_text)(tick);
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>", bottom + 18.0);
        }
        for tick in y_axis.ticks() {
            let (y, right) = (at_y(tick), WIDTH - RIGHT);
            let _ = writeln!(svg, "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e4e4e4\"/>");
            let text = (self.y_text)(tick);
            let _ = writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", LEFT - 8.0, y + 4.0);
        }
        for (at, (name, points)) in self.lines.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let path: Vec<String> = points.iter().map(|&(x, y)| format!("{:.1},{:.1}", at_x(x), at_y(y))).collect();
            let _ =
                writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join(" "));
            for &(x, y) in points {
                let _ = writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", at_x(x), at_y(y));
            }
            let (x, y) = (WIDTH - RIGHT + 16.0, TOP + 20.0 * at as f64 + 12.0);
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{name}</text>");
        }
        let (middle, foot) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 16.0);
        let _ = writeln!(svg, "<text x=\"{middle}\" y=\"{foot}\" text-anchor=\"middle\">{}</text>", self.x);
        let _ = writeln!(
            svg,
            "<text x=\"16\" y=\"{}\" transform=\"rotate(-90 16 {0})\" text-anchor=\"middle\">{}</text>",
            HEIGHT / 2.0,
            self.y
        );
        svg + "</svg>\n"
    }
}

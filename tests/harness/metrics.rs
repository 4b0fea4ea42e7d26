//! A scrape, parsed: values looked up by metric name and labels.

use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    samples: Vec<Sample>,
    /// `# TYPE` by metric name.
    types: BTreeMap<String, String>,
}

impl Metrics {
    /// # Panics
    /// If a line is not of the text exposition format.
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("not a type: {line}"));
                metrics.types.insert(name.into(), kind.into());
            } else if !line.starts_with('#') {
                metrics.samples.push(sample(line).unwrap_or_else(|| panic!("not a sample: {line}")));
            }
        }
        metrics
    }

    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Of the one sample with this name and at least these labels.
    ///
    /// # Panics
    /// If there are several.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let found: Vec<&Sample> = self.matching(name, labels).collect();
        assert!(found.len() <= 1, "several samples of {name} {labels:?}: {found:?}");
        found.first().map(|sample| sample.value)
    }

    /// Over all samples with this name and at least these labels; 0 if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// [`Self::sum`] of what counts things.
    ///
    /// # Panics
    /// If it is no whole number.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let sum = self.sum(name, labels);
        sum.to_string().parse().unwrap_or_else(|_| panic!("{name} {labels:?} is {sum}"))
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|have| have == value))
        })
    }

    /// Counters (and buckets, counts and sums of histograms) that are below their value in `before`, or gone.
    pub fn fallen_since(&self, before: &Self) -> Vec<String> {
        before
            .samples
            .iter()
            .filter(|old| before.is_counter(&old.name))
            .filter_map(|old| match self.samples.iter().find(|new| new.name == old.name && new.labels == old.labels) {
                Some(new) if new.value >= old.value => None,
                Some(new) => Some(format!("{} {:?}: {} after {}", old.name, old.labels, new.value, old.value)),
                None => Some(format!("{} {:?}: gone after {}", old.name, old.labels, old.value)),
            })
            .collect()
    }

    fn is_counter(&self, name: &str) -> bool {
        let family = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        self.types.get(name).is_some_and(|kind| kind == "counter")
            || self.types.get(family).is_some_and(|kind| kind == "histogram")
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inner) => labels(inner)?,
        None => (BTreeMap::new(), rest),
    };
    // A timestamp may follow the value.
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.into(), labels, value })
}

/// The labels up to the closing bracket, and what follows it.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, quoted) = rest.split_once("=\"")?;
        let (value, after) = unquoted(quoted)?;
        labels.insert(key.trim().into(), value);
        rest = after;
    }
}

/// A label value up to its closing quote, escapes resolved, and what follows it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            plain => value.push(plain),
        }
    }
    None
}

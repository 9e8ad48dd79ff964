//! Reads one table of run.toml key by key, so that every error can say where it is and what would be right.

use super::SpecError;

/// Numbers beyond these, but for 0, are nothing that a network can be trained with in single precision.
const LEAST: f64 = 1e-12;
const MOST: f64 = 1e6;

/// How alike a known key must be to be suggested for an unknown one; of shorter ones all are alike.
const ALIKE: f64 = 0.85;
/// How alike a known word must be to be suggested for an unknown value.
const ALIKE_WORDS: f64 = 0.75;
const LETTERS: usize = 3;

/// A table whose keys are taken one after another; what is left over at the end is unknown.
pub(super) struct Section {
    name: String,
    table: toml::Table,
    known: Vec<&'static str>,
}

impl Section {
    pub(super) fn new(name: String, table: toml::Table) -> Self {
        Self { name, table, known: Vec::new() }
    }

    fn take(&mut self, key: &'static str) -> Option<toml::Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    /// Whether a key is there that nobody has read.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    pub(super) fn error(&self, key: &str, problem: impl Into<String>) -> SpecError {
        SpecError::value(&self.name, key, problem)
    }

    fn mistyped(&self, key: &str, wanted: &str, got: &toml::Value) -> SpecError {
        self.error(key, format!("must be {wanted}, not {}: {got}", got.type_str()))
    }

    /// A table inside this one; an absent one is empty.
    pub(super) fn table(&mut self, key: &'static str) -> Result<Section, SpecError> {
        match self.take(key) {
            None => Ok(Section::new(format!("[{key}]"), toml::Table::new())),
            Some(toml::Value::Table(table)) => Ok(Section::new(format!("[{key}]"), table)),
            Some(other) => Err(self.mistyped(key, "a table", &other)),
        }
    }

    /// An array of tables (`[[key]]`).
    pub(super) fn tables(&mut self, key: &'static str) -> Result<Vec<Section>, SpecError> {
        let Some(value) = self.take(key) else { return Ok(Vec::new()) };
        let toml::Value::Array(items) = value else {
            return Err(self.mistyped(key, "[[..]] tables", &value));
        };
        let numbered = items.into_iter().enumerate().map(|(i, item)| match item {
            toml::Value::Table(table) => Ok(Section::new(format!("[[{key}]] {}", i + 1), table)),
            other => Err(self.mistyped(key, "[[..]] tables", &other)),
        });
        numbered.collect()
    }

    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<String>, SpecError> {
        match self.take(key) {
            None => Ok(None),
            Some(toml::Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.mistyped(key, "a text", &other)),
        }
    }

    /// A text, or a list of texts.
    pub(super) fn texts(&mut self, key: &'static str) -> Result<Option<Vec<String>>, SpecError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let text = |item: &toml::Value| item.as_str().map(str::to_owned);
        let texts = match &value {
            toml::Value::Array(items) if !items.is_empty() => items.iter().map(text).collect(),
            one => text(one).map(|text| vec![text]),
        };
        texts.map(Some).ok_or_else(|| self.mistyped(key, "a text or a list of texts", &value))
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Result<Option<bool>, SpecError> {
        match self.take(key) {
            None => Ok(None),
            Some(toml::Value::Boolean(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.mistyped(key, "true or false", &other)),
        }
    }

    /// A whole number in a range.
    pub(super) fn whole(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, SpecError> {
        match self.take(key) {
            None => Ok(None),
            Some(toml::Value::Integer(number)) => {
                match u64::try_from(number) {
                    Ok(number) if range.contains(&number) => Ok(Some(number)),
                    _ => Err(self
                        .error(key, format!("is {number}; it must be {} to {}", range.start(), range.end()))),
                }
            }
            Some(other) => Err(self.mistyped(key, "a whole number", &other)),
        }
    }

    /// A finite number for which `fits` holds; `wanted` says it in words.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        wanted: &str,
        fits: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, SpecError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let number = number_of(&value).ok_or_else(|| self.mistyped(key, "a number", &value))?;
        if !number.is_finite() || !fits(number) {
            return Err(self.error(key, format!("is {number}; it must be {wanted}")));
        }
        self.check_size(key, number)?;
        Ok(Some(number))
    }

    fn check_size(&self, key: &str, number: f64) -> Result<(), SpecError> {
        if number != 0.0 && !(LEAST..=MOST).contains(&number.abs()) {
            return Err(self.error(key, format!("is {number:e}, which is beyond {LEAST:e} to {MOST:e}")));
        }
        Ok(())
    }

    /// A list of finite numbers.
    pub(super) fn numbers(&mut self, key: &'static str) -> Result<Option<Vec<f64>>, SpecError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let toml::Value::Array(items) = &value else {
            return Err(self.mistyped(key, "a list of numbers", &value));
        };
        let numbers: Option<Vec<f64>> = items.iter().map(number_of).collect();
        match numbers.filter(|numbers| numbers.iter().all(|n| n.is_finite())) {
            Some(numbers) => {
                numbers.iter().try_for_each(|number| self.check_size(key, *number))?;
                Ok(Some(numbers))
            }
            None => Err(self.mistyped(key, "a list of numbers", &value)),
        }
    }

    /// A list of whole numbers, 0 or greater.
    pub(super) fn wholes(&mut self, key: &'static str) -> Result<Option<Vec<u32>>, SpecError> {
        let Some(numbers) = self.numbers(key)? else { return Ok(None) };
        let whole = |x: f64| (x >= 0.0 && x <= f64::from(u32::MAX) && x.fract() == 0.0).then_some(x as u32);
        let whole: Option<Vec<u32>> = numbers.into_iter().map(whole).collect();
        whole.map(Some).ok_or_else(|| self.error(key, "must be whole numbers, 0 or greater"))
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, SpecError> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        match choices.iter().find(|(word, _)| *word == text) {
            Some((_, choice)) => Ok(Some(*choice)),
            None => {
                let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
                Err(self.error(key, unknown_word(&text, &words)))
            }
        }
    }

    /// A text, or the table that stands where a text is also possible.
    pub(super) fn text_or_table(&mut self, key: &'static str) -> Result<Option<TextOrTable>, SpecError> {
        match self.take(key) {
            None => Ok(None),
            Some(toml::Value::String(text)) => Ok(Some(TextOrTable::Text(text))),
            Some(toml::Value::Table(table)) => {
                Ok(Some(TextOrTable::Table(Section::new(format!("{} {key}", self.name), table))))
            }
            Some(other) => Err(self.mistyped(key, "a text or a table", &other)),
        }
    }

    pub(super) fn missing(&self, key: &str, hint: &str) -> SpecError {
        SpecError::Missing { section: self.name.clone(), key: key.into(), hint: hint.into() }
    }

    /// Ends the reading: a key that nobody took is an error.
    pub(super) fn finish(self) -> Result<(), SpecError> {
        match self.table.into_iter().next() {
            None => Ok(()),
            Some((key, _)) => {
                let long: Vec<&str> =
                    self.known.iter().copied().filter(|known| known.len() >= LETTERS).collect();
                let nearest = nearest(&key, &long, ALIKE).filter(|_| key.len() >= LETTERS);
                Err(SpecError::UnknownKey { section: self.name, key, nearest, known: self.known.join(", ") })
            }
        }
    }
}

/// What [`Section::text_or_table`] found.
pub(super) enum TextOrTable {
    Text(String),
    Table(Section),
}

fn number_of(value: &toml::Value) -> Option<f64> {
    match value {
        toml::Value::Float(number) => Some(*number),
        toml::Value::Integer(number) => Some(*number as f64),
        _ => None,
    }
}

/// The known word that is most like a misspelt one, if any is so much like it.
fn nearest(word: &str, known: &[&str], alike: f64) -> Option<String> {
    let scored = known.iter().map(|candidate| (strsim::jaro_winkler(word, candidate), candidate));
    scored
        .filter(|(score, _)| *score >= alike)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| (*candidate).to_owned())
}

/// Says that a word is none of the known ones, and which is nearest.
pub(super) fn unknown_word(word: &str, known: &[&str]) -> String {
    let near = nearest(word, known, ALIKE_WORDS);
    let near = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
    format!("{word:?} is not known{near} (known: {})", known.join(", "))
}

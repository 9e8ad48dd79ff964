//! One golden file: its metadata, arguments and expectations.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor, Var};
use safetensors::SafeTensors;

/// Named tensors; floats as F64, integers as I64.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// What a golden file holds.
pub(crate) struct Case {
    pub(crate) term: String,
    params: serde_json::Map<String, serde_json::Value>,
    inputs: Tensors,
    pub(crate) outputs: Tensors,
    pub(crate) gradients: Tensors,
}

impl Case {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path)?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let metadata = header.metadata().clone().context("no metadata")?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        Self::new(&metadata, tensors)
    }

    pub(crate) fn new(metadata: &HashMap<String, String>, tensors: HashMap<String, Tensor>) -> Result<Self> {
        let term = metadata.get("term").context("the metadata name no term")?.clone();
        let params = metadata.get("params").map_or("{}", String::as_str);
        let params = serde_json::from_str(params).with_context(|| format!("params {params}"))?;
        let (mut inputs, mut outputs, mut gradients) = (Tensors::new(), Tensors::new(), Tensors::new());
        for (name, tensor) in tensors {
            let dtype = if tensor.dtype().is_float() { DType::F64 } else { DType::I64 };
            let tensor = tensor.to_dtype(dtype)?;
            match name.split_once('.') {
                Some(("in", name)) => inputs.insert(name.to_owned(), tensor),
                Some(("out", name)) => outputs.insert(name.to_owned(), tensor),
                Some(("grad", name)) => gradients.insert(name.to_owned(), tensor),
                _ => bail!("tensor {name} is neither in.*, out.* nor grad.*"),
            };
        }
        if outputs.is_empty() {
            bail!("nothing is expected: no out.*");
        }
        if let Some(name) = gradients.keys().find(|name| !inputs.contains_key(*name)) {
            bail!("grad.{name} has no in.{name}");
        }
        Ok(Self { term, params, inputs, outputs, gradients })
    }
}

/// A case whose arguments have been cast to one precision.
pub(crate) struct Trial<'a> {
    case: &'a Case,
    pub(crate) dtype: DType,
    pub(crate) variables: BTreeMap<String, Var>,
}

impl<'a> Trial<'a> {
    pub(crate) fn new(case: &'a Case, dtype: DType) -> Result<Self> {
        let mut variables = BTreeMap::new();
        for name in case.gradients.keys() {
            let argument = case.inputs[name].to_dtype(dtype)?;
            variables.insert(name.clone(), Var::from_tensor(&argument)?);
        }
        Ok(Self { case, dtype, variables })
    }

    /// A float argument in the precision of the trial, as a variable if a gradient is expected for it.
    pub(crate) fn float(&self, name: &str) -> Result<Tensor> {
        match self.variables.get(name) {
            Some(variable) => Ok(variable.as_tensor().clone()),
            None => Ok(self.input(name)?.to_dtype(self.dtype)?),
        }
    }

    /// [`Trial::float`] of an argument that a case may not have.
    pub(crate) fn optional(&self, name: &str) -> Result<Option<Tensor>> {
        self.case.inputs.contains_key(name).then(|| self.float(name)).transpose()
    }

    /// An integer argument.
    pub(crate) fn integers(&self, name: &str) -> Result<Tensor> {
        let tensor = self.input(name)?;
        if tensor.dtype() != DType::I64 {
            bail!("in.{name} must be integers");
        }
        Ok(tensor.clone())
    }

    /// The arguments `{prefix}0`, `{prefix}1` and so on: one for each network.
    pub(crate) fn networks(&self, prefix: &str) -> Result<Vec<Tensor>> {
        let names = (0..).map(|i| format!("{prefix}{i}"));
        let names = names.take_while(|name| self.case.inputs.contains_key(name));
        let networks = names.map(|name| self.float(&name)).collect::<Result<Vec<_>>>()?;
        if networks.is_empty() {
            bail!("no in.{prefix}0");
        }
        Ok(networks)
    }

    /// The arguments `{prefix}IK` of stage K of network I, both from 0: a list for each network.
    pub(crate) fn stages(&self, prefix: &str) -> Result<Vec<Vec<Tensor>>> {
        let mut all = Vec::new();
        while self.case.inputs.contains_key(&format!("{prefix}{}0", all.len())) {
            all.push(self.networks(&format!("{prefix}{}", all.len()))?);
        }
        if all.is_empty() {
            bail!("no in.{prefix}00");
        }
        Ok(all)
    }

    /// The names of the expected results.
    pub(crate) fn expected(&self) -> impl Iterator<Item = &String> {
        self.case.outputs.keys()
    }

    /// Which of `count` networks have an expected gradient; `otherwise` if none has.
    pub(crate) fn learners(&self, prefix: &str, count: usize, otherwise: usize) -> Vec<usize> {
        let learns = |i: &usize| self.variables.contains_key(&format!("{prefix}{i}"));
        let learners: Vec<usize> = (0..count).filter(learns).collect();
        if learners.is_empty() { vec![otherwise] } else { learners }
    }

    /// A number among the parameters, or its default.
    pub(crate) fn number(&self, name: &str, default: f64) -> Result<f64> {
        match self.case.params.get(name) {
            None => Ok(default),
            Some(value) => value.as_f64().with_context(|| format!("param {name} = {value} is no number")),
        }
    }

    /// A number that need not be among the parameters, or may be null.
    pub(crate) fn optional_number(&self, name: &str) -> Result<Option<f64>> {
        match self.case.params.get(name) {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(_) => self.number(name, 0.0).map(Some),
        }
    }

    /// A yes or no among the parameters, or its default.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.case.params.get(name) {
            None => Ok(default),
            Some(value) => value.as_bool().with_context(|| format!("param {name} = {value} is no boolean")),
        }
    }

    /// A list of numbers among the parameters, empty by default.
    pub(crate) fn list(&self, name: &str) -> Result<Vec<u64>> {
        match self.case.params.get(name) {
            None => Ok(Vec::new()),
            Some(value) => {
                let items =
                    value.as_array().and_then(|items| items.iter().map(|item| item.as_u64()).collect());
                items.with_context(|| format!("param {name} = {value} is no list of whole numbers"))
            }
        }
    }

    /// One of the words that a parameter may be; the first is the default.
    pub(crate) fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<T> {
        let word = match self.case.params.get(name) {
            None => choices.first().map(|(word, _)| *word),
            Some(value) => value.as_str(),
        };
        let chosen = choices.iter().find(|(known, _)| Some(*known) == word);
        let (_, value) =
            chosen.with_context(|| format!("param {name} is {:?}", self.case.params.get(name)))?;
        Ok(*value)
    }

    fn input(&self, name: &str) -> Result<&Tensor> {
        self.case.inputs.get(name).with_context(|| format!("no in.{name}"))
    }
}

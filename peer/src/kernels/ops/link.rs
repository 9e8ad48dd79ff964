//! A computed result as a node of candle's graph, with its backward pass as a closure.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

/// Gradients by the arguments, in their order; none for those that want none.
pub(in super::super) type Gradients = [Option<Tensor>; 3];

/// Enters `result`, computed from `args` (at most three), into the graph. `backward` takes the result and its gradient.
pub(in super::super) fn link<B>(
    name: &'static str,
    args: &[&Tensor],
    result: (CpuStorage, Shape),
    backward: B,
) -> Result<Tensor>
where
    B: Fn(&Tensor, &Tensor) -> Result<Gradients> + Send + Sync + 'static,
{
    let link = Link { name, result: Mutex::new(Some(result)), backward };
    match *args {
        [a] => a.apply_op1(link),
        [a, b] => a.apply_op2(b, link),
        [a, b, c] => a.apply_op3(b, c, link),
        _ => candle_core::bail!("{name} has {} arguments; one to three can be linked", args.len()),
    }
}

struct Link<B> {
    name: &'static str,
    /// Until candle asks for it, which it does once, at once.
    result: Mutex<Option<(CpuStorage, Shape)>>,
    backward: B,
}

impl<B> Link<B> {
    fn result(&self) -> Result<(CpuStorage, Shape)> {
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        match result {
            Some(result) => Ok(result),
            None => candle_core::bail!("{} was computed once and cannot be again", self.name),
        }
    }
}

impl<B: Fn(&Tensor, &Tensor) -> Result<Gradients>> CustomOp1 for Link<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let [a, _, _] = (self.backward)(y, dy)?;
        Ok(a)
    }
}

impl<B: Fn(&Tensor, &Tensor) -> Result<Gradients>> CustomOp2 for Link<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b, _] = (self.backward)(y, dy)?;
        Ok((a, b))
    }
}

impl<B: Fn(&Tensor, &Tensor) -> Result<Gradients>> CustomOp3 for Link<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = (self.backward)(y, dy)?;
        Ok((a, b, c))
    }
}

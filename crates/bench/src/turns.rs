//! Programs that are measured by turns, so that whatever else the machine does is done to all alike.

/// One of the programs that are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The one that the benchmark is about.
    Measured,
    /// The one that it is compared with.
    Against,
}

/// What belongs to each of the programs; nothing to one that is not there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Each<T> {
    pub measured: T,
    pub against: Option<T>,
}

impl<T> Each<T> {
    /// Makes it for each program that is there.
    pub fn of<E>(
        is_compared: bool,
        mut make: impl FnMut(Program) -> Result<T, E>,
    ) -> Result<Each<T>, E> {
        let measured = make(Program::Measured)?;
        let against = is_compared.then(|| make(Program::Against)).transpose()?;
        Ok(Each { measured, against })
    }

    /// That of a program; none of one that is not there.
    pub fn get(&self, program: Program) -> Option<&T> {
        match program {
            Program::Measured => Some(&self.measured),
            Program::Against => self.against.as_ref(),
        }
    }

    /// The same of something that is made of it.
    pub fn map<U>(&self, of: impl Fn(&T) -> U) -> Each<U> {
        Each { measured: of(&self.measured), against: self.against.as_ref().map(of) }
    }
}

impl<T> Each<Vec<T>> {
    /// A figure of each run.
    pub fn values(&self, of: impl Fn(&T) -> f64) -> Each<Vec<f64>> {
        self.map(|runs| runs.iter().map(&of).collect())
    }
}

/// Runs each program once a run, every second run in the other order; what each run came to.
pub fn by_turns<T>(
    is_compared: bool,
    runs: u64,
    mut run_once: impl FnMut(Program, u64) -> anyhow::Result<T>,
) -> anyhow::Result<Each<Vec<T>>> {
    let (mut measured, mut against) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        let mut turns = vec![Program::Measured];
        if is_compared {
            turns.insert((run % 2) as usize, Program::Against);
        }
        for program in turns {
            let came_to = run_once(program, run)?;
            match program {
                Program::Measured => measured.push(came_to),
                Program::Against => against.push(came_to),
            }
        }
    }
    Ok(Each { measured, against: is_compared.then_some(against) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_first_by_turns() {
        use Program::{Against, Measured};
        let mut order = Vec::new();
        let each = by_turns(true, 3, |program, run| {
            order.push((program, run));
            Ok(run)
        });
        assert_eq!(
            order,
            [(Measured, 1), (Against, 1), (Against, 2), (Measured, 2), (Measured, 3), (Against, 3)]
        );
        assert_eq!(each.unwrap(), Each { measured: vec![1, 2, 3], against: Some(vec![1, 2, 3]) });
        let alone = by_turns(false, 2, |program, run| Ok((program, run))).unwrap();
        assert_eq!(alone, Each { measured: vec![(Measured, 1), (Measured, 2)], against: None });
    }
}

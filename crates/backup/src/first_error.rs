//! Workers that end each other: the first that fails says why, and the others end for no reason but that.

use std::sync::{Mutex, PoisonError};

use crate::throttle::Stop;

/// Why the first of several workers failed.
#[derive(Debug)]
pub(crate) struct FirstError<E> {
    first: Mutex<Option<E>>,
    ended: Stop,
}

impl<E> FirstError<E> {
    /// Nobody has failed; `ended` is set once somebody has.
    pub(crate) fn new(ended: Stop) -> Self {
        Self {
            first: Mutex::new(None),
            ended,
        }
    }

    /// A worker failed. ▲ The reason is kept before the others are told to end: what they fail with then only follows
    /// from it, and names the wrong thing.
    pub(crate) fn report(&self, error: E) {
        self.first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.ended.stop();
    }

    /// What tells workers to end.
    pub(crate) fn ended(&self) -> &Stop {
        &self.ended
    }

    /// After the last worker's end.
    pub(crate) fn into_result(self) -> Result<(), E> {
        let first = self.first.into_inner().unwrap_or_else(PoisonError::into_inner);
        first.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_follows_from_an_error_never_hides_it() {
        for _ in 0..300 {
            let errors = FirstError::new(Stop::default());
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while !errors.ended().is_set() {
                            thread::yield_now();
                        }
                        errors.report("it was ended");
                    });
                }
                scope.spawn(|| errors.report("the disk is full"));
            });
            assert_eq!(errors.into_result(), Err("the disk is full"));
        }
    }
}

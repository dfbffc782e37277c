//! What a store keeps from one call to the next of the same caller.

use std::any::Any;
use std::fmt;

/// What a store keeps from one call to the next: in PostgreSQL a connection, so that a command that reads and then appends takes it
/// from the pool once. It is given back when this is dropped.
#[derive(Default)]
pub struct Kept(Option<Box<dyn Any + Send>>);

impl Kept {
    /// Gives back what is kept.
    pub fn release(&mut self) {
        self.0 = None;
    }

    /// What is kept, if it is of this type.
    pub fn get<T: Any + Send>(&mut self) -> Option<&mut T> {
        self.0.as_mut()?.downcast_mut()
    }

    /// Keeps something instead of what was kept before.
    pub fn keep<T: Any + Send>(&mut self, value: T) {
        self.0 = Some(Box::new(value));
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kept").field(&self.0.is_some()).finish()
    }
}

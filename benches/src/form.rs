//! How long something is measured.

/// How long a run may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For figures: as long as they need.
    Full,
    /// In minutes, for a look.
    Quick,
    /// In a moment, to see that it works: no figure is worth anything.
    Smoke,
}

impl Form {
    /// As reports call it.
    pub fn name(self) -> &'static str {
        self.of("full", "quick", "smoke")
    }

    /// What goes with it.
    pub fn of<T>(self, full: T, quick: T, smoke: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
            Self::Smoke => smoke,
        }
    }
}

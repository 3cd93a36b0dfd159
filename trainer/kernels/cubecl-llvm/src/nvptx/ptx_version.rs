//! Version of the PTX language.

use core::fmt;

/// Version of the PTX language. There is none here, because nothing here writes PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PtxVersion {}

impl PtxVersion {
    /// The version for a driver: none, which asks for the default.
    #[must_use]
    pub const fn for_driver(_driver: i32) -> Option<Self> {
        None
    }
}

impl fmt::Display for PtxVersion {
    fn fmt(&self, _formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

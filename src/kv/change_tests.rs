//! How a key changes: tables.

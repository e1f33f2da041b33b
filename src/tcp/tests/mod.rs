//! Conversations: two endpoints on a virtual clock (`pair`), one endpoint against text scripts (`script`, `scripts/`), one
//! endpoint against arbitrary bytes (`hostile`).

mod hostile;
mod pair;
mod script;

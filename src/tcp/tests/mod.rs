//! Conversations: two endpoints on a virtual clock (`pair`), one endpoint against text scripts (`script`, `scripts/`), one
//! endpoint against arbitrary bytes (`hostile`), what an endpoint promises across peers (`limits`).

mod hostile;
mod limits;
mod pair;
mod script;

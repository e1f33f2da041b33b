//! Conversations: two endpoints on a virtual clock (`pair`), one endpoint against text scripts (`script`, `scripts/`), one
//! endpoint against arbitrary bytes (`hostile`), what an endpoint promises across peers (`limits`). `seeds` runs whole conversations of
//! `pair` under many seeds, `judge` says what is right in them, `doctored` shows that it can say otherwise; `campaign` is the run of
//! many seeds.

mod campaign;
mod doctored;
mod hostile;
mod judge;
mod limits;
mod pair;
mod script;
mod seeds;

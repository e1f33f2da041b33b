//! Conversations: two endpoints on a virtual clock (`pair`), and one endpoint against a text script (`script`).

mod pair;

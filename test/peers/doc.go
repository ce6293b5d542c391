// Package peers measures what deploys cost clients, with gapless and with what others use, by one and the same tool:
// `gapless verify --url --deploy`. `make bench-peers` runs it on a machine that does nothing else and writes
// docs/peers.md; what is not installed (`make test-deps bench-deps`) is left out, and the page says so.
//
// Every peer answers GET / with a few bytes and is deployed by its own documented way; a deploy is over when the new
// processes are there. What a peer loses fails nothing here: it is what is being measured.
package peers

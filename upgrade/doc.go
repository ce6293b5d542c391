// Package upgrade holds what outlives a generation of workers, its listening sockets, and replaces the master that looks
// after them by the next one, as a transaction.
//
// # Sockets
//
// An Inventory claims addresses and holds the sockets of each as lanes, one SO_REUSEPORT group to an address. A program on
// the group gives each new connection to one of the active lanes by weight; start, drain, staging and preview are all the
// same act, another program (Switch, SetPreview). Settle says when nothing that was on its way to a lane is still unread,
// and Watch finds lanes whose worker hangs, was shut down, or is no more. Where the kernel cannot steer, an address has one
// socket for all generations, and Steerable says why.
//
// # Upgrades
//
// The master in charge runs an Attempt: a Handover (tableflip) starts the next master from what is on disk, which meets it
// as its Predecessor by Join. Over the successor channel between the two it asks for lanes, tells how far it is, and at the
// end gets parcels: all that the one in charge leaves. A Stage may hold a generation that is ready beside the one in charge.
//
// The invariants:
//
//   - A lane is never closed while gapless runs, as that would reset what is queued on it and move the indexes of the others.
//   - Only the master in charge opens lanes and replaces programs, and no program ever names none.
//   - A socket is kept for the next master, by Files, before any worker has it.
//   - An Attempt ends with the new master in charge, or with the owner as it was and all gone that was started; but workers
//     that may have clients are the owner's to drain then. With the commit sent, the new master takes charge even if the one
//     before dies on the spot.
//
// The package starts no workers and knows nothing of them but PIDs: see workerpool, and lifecycle for both together.
package upgrade

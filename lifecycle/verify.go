package lifecycle

import "context"

// Step is where a staged generation stands when it is verified.
type Step struct {
	Generation int
	Percent    int  // of new connections that it gets
	Final      bool // the promotion follows
}

// Verifier tells whether a staged generation may go on. Its error aborts the generation; an *upgrade.StageError carries the
// last lines of what failed. ctx ends when the generation is given up for another reason. Of one stage never two calls run
// at a time.
type Verifier interface {
	Verify(ctx context.Context, s Step) error
}

// verifier returns what a request to stage asks for; nil: nothing is verified.
func (m *master) verifier(*stageRequest) (Verifier, error) { return nil, nil }

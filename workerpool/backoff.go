package workerpool

import "time"

// The restart policy's constants.
const (
	backoffFirst  = 100 * time.Millisecond // the delay before the second restart in a row
	backoffMax    = 30 * time.Second       // the longest delay
	backoffStable = time.Minute            // a worker that lived so long has earned a restart at once
)

// backoff returns how long to wait before the next restart in a slot whose workers have died failures times in a row
// (1 for the first death). The first restart comes at once; then the delay doubles from backoffFirst to backoffMax,
// each shortened by up to a half: random is from [0,1) and spreads slots that died together.
func backoff(failures int, random float64) time.Duration {
	if failures <= 1 {
		return 0
	}
	d := backoffMax
	if shift := failures - 2; shift < 16 { // beyond it the product would long have passed the maximum
		d = min(backoffFirst<<shift, backoffMax)
	}
	return d - time.Duration(random*float64(d)/2)
}

package workerpool

// silence is why no adapter is in force in a worker that is ready and has not said a word of one.
func (a Adapter) silence() string {
	switch {
	case a.Reason != "":
		return a.Reason
	case a.Name != "" && a.Expected:
		return "the adapter was not loaded: the command has cleared the environment, or closed its descriptors (a wrapper, " +
			"several workers of its own), or its interpreter was told to pass the environment over (python -I, -E)"
	}
	return ""
}

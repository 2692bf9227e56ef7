"""Studies: arms over seeds, each judged alike, with intervals."""

"""What `meter-lib doctor` looks at. Each check is a function of plain facts."""

"""What every part stands on: errors, files, seeds, devices,
processes and the command line's habits.
"""

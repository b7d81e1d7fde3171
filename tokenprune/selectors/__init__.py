"""Layer selectors: before which decoder layers are tokens dropped?"""
